"""Metrics, alert rules and dashboard, checked with Prometheus' own tools."""

import json
import pathlib
import re
import subprocess

import pytest
import requests
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from fake_homeserver import SERVER, USER, FakeHomeserver

CONTRIB = pathlib.Path(__file__).parents[2] / "contrib"


@pytest.fixture
def scrape(start):
    homeserver = FakeHomeserver()
    service = start(LIVEKIT_FEDERATION_URL_OVERRIDES=homeserver.override, LIVEKIT_METRICS_BIND="127.0.0.1:0")
    address = re.search(r"msg=\"serving metrics\" address=([^\s\"]+)", service.text)[1]
    assert service.get_token(USER, SERVER).status == 200
    yield requests.get(f"http://{address}/metrics", timeout=10)
    homeserver.stop()


def test_prometheus_parses_the_metrics(scrape):
    assert scrape.headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(scrape.text)}
    tokens = families["livekit_token_service_tokens_issued"]
    assert tokens.type == "counter" and [sample.value for sample in tokens.samples] == [1]
    assert families["livekit_token_service_request_duration_seconds"].type == "histogram"
    assert families["livekit_token_service_build_info"].samples[0].labels.keys() == {"version"}
    # the older text format
    assert len(list(classic(scrape.text))) >= len(families)


def test_promtool_accepts_rules_and_metrics(scrape):
    rules = subprocess.run(["promtool", "check", "rules", CONTRIB / "alerts.yml"], capture_output=True, text=True)
    assert rules.returncode == 0 and "9 rules found" in rules.stdout, rules.stdout + rules.stderr
    linted = subprocess.run(["promtool", "check", "metrics"], input=scrape.text, capture_output=True, text=True)
    assert linted.returncode in (0, 3) and "parsing error" not in linted.stderr, linted.stderr


def test_the_queries_of_the_dashboard_are_valid(tmp_path):
    dashboard = json.loads((CONTRIB / "grafana.json").read_text())
    queries = [target["expr"].replace("$job", ".*") for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) >= 10
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.json"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
