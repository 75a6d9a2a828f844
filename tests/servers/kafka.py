"""A real Kafka broker: jars from Maven Central, one process, no Docker. Needs Java 17 and, once, Maven."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition

from .process import Process, ServerError, free_ports

# 4.4.0 is listed, but one of its dependencies is not published.
VERSION = "4.3.1"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "kafka"
USERS = {"alice": "alice-secret"}
CLUSTER_ID = "c3RyZWFtLW1vbml0b3ItMQ"

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>test</groupId><artifactId>broker</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""

# A small client-only heap and the first compiler alone: a broker of a test lives for seconds.
_JAVA = (
    "java",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Xshare:auto",
    "-Xmx512m",
    "-Xms64m",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


def unavailable() -> str | None:
    """Why no broker can be started here; None if it can."""
    if shutil.which("java") is None:
        return "the Kafka broker of the tests needs Java 17 (Debian: openjdk-17-jre-headless)"
    if not _jars().is_dir() and shutil.which("mvn") is None:
        return "fetching the Kafka broker of the tests needs Maven (Debian: maven)"
    return None


def fetch() -> None:
    """Put the jars and the archive of loaded classes into the cache, unless they are there."""
    if not _jars().is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            _fetch_jars(Path(work))
    if not _archive().is_file():
        _write_archive()


def _fetch_jars(work: Path) -> None:
    (work / "pom.xml").write_text(_POM)
    command = ["mvn", "-B", "-q", "-f", str(work / "pom.xml"), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*command, "-DincludeScope=runtime", f"-DoutputDirectory={work / 'jars'}"], capture_output=True, text=True
    )
    if done.returncode:
        raise ServerError(f"Maven could not fetch Kafka {VERSION}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    try:
        (work / "jars").rename(_jars())
    except OSError:
        if not _jars().is_dir():  # else somebody was faster
            raise


def _write_archive() -> None:
    """Class data sharing takes 3 s off every start. Java writes the archive at the end of an orderly run."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "kafka.jsa"
        broker = Kafka(Path(folder) / "broker", java_options=(f"-XX:ArchiveClassesAtExit={written}",))
        broker.start()
        broker.stop()
        if written.is_file():
            moving = _archive().with_suffix(f".{os.getpid()}")
            shutil.copyfile(written, moving)
            moving.replace(_archive())


def _jars() -> Path:
    return CACHE / VERSION


def _archive() -> Path:
    return CACHE / f"{VERSION}.jsa"


def _java(*options: str) -> list[str]:
    # The archive is only taken with the very class path it was written with: hence sorted and explicit.
    return [*_JAVA, *options, "-cp", ":".join(sorted(str(jar) for jar in _jars().glob("*.jar")))]


class Kafka:
    """One broker on loopback; its addresses stay the same over restarts.

    With `secure` it also listens for SASL_SSL (PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512, users `USERS`) and for SSL;
    `ca_file` is who signed its certificate. The unprotected listener is there either way, to prepare topics.
    """

    def __init__(self, folder: Path, *, secure: bool = False, java_options: tuple[str, ...] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._secure = secure
        self._options = (f"-XX:SharedArchiveFile={_archive()}",) if java_options is None else java_options
        self._port, self._controller, self._sasl, self._ssl = free_ports(4)
        self._process: Process | None = None
        self.bootstrap = f"127.0.0.1:{self._port}"
        self.sasl_bootstrap = f"127.0.0.1:{self._sasl}"
        self.ssl_bootstrap = f"127.0.0.1:{self._ssl}"
        self.ca_file = folder / "ca.pem"
        self._prepare()

    def start(self) -> None:
        """Start it and wait until it answers; raises ServerError."""
        command = [*_java(*self._options), "kafka.Kafka", str(self._folder / "server.properties")]
        self._process = Process(command, self._folder / "broker.log")
        self._process.wait_until(self._answers, seconds=60)

    def stop(self) -> None:
        """End it in order; its records stay."""
        if self._process is not None:
            self._process.stop(seconds=30)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        if self._process is not None:
            self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a hanging one go on."""
        if self._process is not None:
            self._process.signal(signal.SIGCONT)

    def create_topic(self, name: str, partitions: int = 1, *, configs: Mapping[str, str] | None = None) -> None:
        """A new topic whose partitions have their leader when this returns."""
        options = {"num_partitions": partitions, "replication_factor": 1, "configs": dict(configs or {})}
        with self.admin() as admin:
            admin.create_topics({name: options}, wait_for_metadata=True)

    def add_partitions(self, name: str, total: int) -> None:
        """Raise the number of a topic's partitions to `total`."""
        with self.admin() as admin:
            admin.create_partitions({name: total})

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Drop the records below an offset, as retention would."""
        with self.admin() as admin:
            admin.delete_records({TopicPartition(topic, partition): before})

    @contextlib.contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """A client for whatever else a test wants changed."""
        client = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            yield client
        finally:
            client.close()

    def _answers(self) -> bool:
        """Whether an ApiVersions request is answered: the port opens long before the broker serves."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=2) as peer:
            peer.sendall(struct.pack(">ihhih", 10, 18, 0, 1, -1))
            return len(peer.recv(4)) == 4
        return False

    def _prepare(self) -> None:
        data = self._folder / "data"
        lines = _properties(self._port, self._controller) | {"log.dirs": str(data)}
        if self._secure:
            lines |= _secure_properties(lines, self._sasl, self._ssl, _certificate(self._folder))
        properties = self._folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        if self._secure:
            self._format(properties)
        else:
            data.mkdir()
            meta = {"version": "1", "node.id": "1", "cluster.id": CLUSTER_ID, "directory.id": _directory_id()}
            (data / "meta.properties").write_text("".join(f"{key}={value}\n" for key, value in meta.items()))

    def _format(self, properties: Path) -> None:
        """Passwords of SCRAM users are part of the first metadata record, which only Kafka's own tool writes."""
        users = [
            f"{mechanism}=[name={name},password={password}]"
            for name, password in USERS.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        command = [*_java(), "kafka.tools.StorageTool", "format", f"--cluster-id={CLUSTER_ID}", "-c", str(properties)]
        scram = [part for user in users for part in ("--add-scram", user)]
        done = subprocess.run([*command, *scram], capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f"the broker's storage could not be formatted:\n{done.stdout}{done.stderr}")


def _directory_id() -> str:
    """22 characters that do not begin with a dash, as Kafka wants its ids."""
    return "A" + uuid.uuid4().hex[:21]


def _properties(port: int, controller: int) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
        "inter.broker.listener.name": "PLAINTEXT",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "auto.create.topics.enable": "false",
        # A broker killed and started again waits until its old session ends: 3 s with these, 11 s without.
        "broker.session.timeout.ms": "1500",
        "broker.heartbeat.interval.ms": "300",
    }


def _secure_properties(plain: Mapping[str, str], sasl: int, ssl: int, keystore: Path) -> dict[str, str]:
    added = f",SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{ssl}"
    users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
    security = "org.apache.kafka.common.security"
    scram = f"{security}.scram.ScramLoginModule required;"
    return {
        "listeners": plain["listeners"] + added,
        "advertised.listeners": plain["advertised.listeners"] + added,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{security}.plain.PlainLoginModule required {users};",
        "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
    }


def _certificate(folder: Path) -> Path:
    """A private CA (`ca.pem`) and the broker's key, certificate and CA in one file, as Kafka reads it."""
    key, request, certificate, names = (folder / f"server.{kind}" for kind in ("key", "csr", "crt", "ext"))
    ca_key, ca = folder / "ca.key", folder / "ca.pem"
    names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    rsa = ["-newkey", "rsa:2048", "-nodes"]
    _openssl("req", "-x509", *rsa, "-days", "30", "-subj", "/CN=test CA", "-keyout", ca_key, "-out", ca)
    _openssl("req", *rsa, "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", request)
    signing: list[str | Path] = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "30", "-extfile", names]
    _openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
    keystore = folder / "server.pem"
    keystore.write_bytes(key.read_bytes() + certificate.read_bytes() + ca.read_bytes())
    return keystore


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"openssl {arguments[0]}: {done.stderr}")
