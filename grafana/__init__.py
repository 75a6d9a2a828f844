"""The dashboards: written as code, generated as JSON, tried on a real Prometheus and drawn for the documentation.

queries · panels -> models, model, feature, labels, monitor -> write -> dashboards/*.json; story -> ask -> draw
"""
