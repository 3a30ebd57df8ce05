"""nginx and Caddy as child processes, with the files of contrib/ or a test's configuration."""

import pathlib
import re
import socket
import subprocess
import time

CONTRIB = pathlib.Path(__file__).parents[2] / "contrib"
START_SECONDS = 20

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr; user root;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {in_http}
    server {{ listen 127.0.0.1:{port}; {in_server} }}
}}
"""
CADDY = """
{
	admin off
	auto_https off
}
import site
"""


class Proxy:
    """A running proxy that listens on `authority`."""

    def __init__(self, folder, port, command):
        self.authority = f"127.0.0.1:{port}"
        self._log = folder / "proxy.log"
        with open(self._log, "w") as log:
            env = {"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": str(folder)}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + START_SECONDS
        while not _accepts_connections(port):
            assert time.monotonic() < deadline and self._process.poll() is None, (
                f"{command[0]} did not start:\n{self.text}"
            )
            time.sleep(0.02)

    @property
    def text(self):
        return self._log.read_text()

    def stop(self):
        self._process.terminate()
        self._process.wait(20)


def nginx(folder, in_server, in_http=""):
    """Starts nginx with a minimal configuration around the given parts of `server {}` and `http {}`."""
    port, config = _free_port(), folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, in_server=in_server, in_http=in_http))
    return Proxy(folder, port, ["nginx", "-p", folder, "-c", config])


def caddy(folder, site):
    """Starts Caddy with one site, whose name `matrix-rtc.example.com` is replaced by a port on loopback without TLS."""
    port, config = _free_port(), folder / "Caddyfile"
    site, found = re.subn(r"(?m)^matrix-rtc\.example\.com \{", f"http://127.0.0.1:{port} {{", site)
    assert found == 1, "contrib/Caddyfile no longer has exactly one site"
    (folder / "site").write_text(site)
    config.write_text(CADDY)
    return Proxy(folder, port, ["caddy", "run", "--config", config, "--adapter", "caddyfile"])


def contrib(name, service_port, sfu_port=7880):
    """A file of contrib/ with the ports of the test."""
    text = (CONTRIB / name).read_text()
    for old, new in (8080, service_port), (7880, sfu_port):
        assert f"127.0.0.1:{old}" in text, f"contrib/{name} no longer mentions port {old}"
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    return text


def _accepts_connections(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
