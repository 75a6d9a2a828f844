# Three steps: fetch what the lock names and verify its hashes, install only what the program needs, leave the tools behind.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements.lock ./
RUN pip download --require-hashes --no-deps --dest /wheels -r requirements.lock
COPY pyproject.toml README.md ./
COPY stream_monitor ./stream_monitor
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/stream-monitor \
    && /opt/stream-monitor/bin/pip install --no-index --find-links /wheels "stream-monitor[confluent]" \
    && /opt/stream-monitor/bin/python -m compileall -q /opt/stream-monitor/lib

FROM python:3.11.14-slim-bookworm
ENV PATH=/opt/stream-monitor/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/stream-monitor /opt/stream-monitor
# The state file is all that outlives the container; a volume that is new takes the owner of this folder.
RUN install -d -o 65532 -g 65532 /var/lib/stream-monitor
USER 65532:65532
WORKDIR /var/lib/stream-monitor
VOLUME /var/lib/stream-monitor
EXPOSE 9464
# Alive, not ready: a service that catches up must not be killed for it. Recovery comes before the port opens.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
# The last checkpoint and the commit of the offsets happen on SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["stream-monitor"]
CMD ["run", "--config", "/etc/stream-monitor/monitor.yaml"]
