"""Weights by URL: downloaded, or refused in one sentence."""

import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from apa_det.checkpoint.download import download_checkpoint
from apa_det.engine import StrictCheckpointer
from apa_det.engine.setup.checks import require_weights
from apa_det.errors import UserError


class Handler(BaseHTTPRequestHandler):
    """Serves one file."""

    def __init__(self, content, *args):
        self.content = content
        super().__init__(*args)

    def do_GET(self):
        if self.path != "/folder/file.pth":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server with a checkpoint."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "source.pth")
    handler = partial(Handler, (tmp_path / "source.pth").read_bytes())
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def job(weights, output_dir="none"):
    return SimpleNamespace(
        weights=weights, output_dir=output_dir, KEYS={"weights": "MODEL.WEIGHTS"}
    )


def test_download(server, tmp_path):
    url = f"{server}/folder/file.pth"
    require_weights(job(f"{url}?matching_heuristics=True"), eval_only=False, resume=False)
    path = download_checkpoint(url)
    assert (tmp_path / "source.pth").read_bytes() == open(path, "rb").read()
    model = nn.Linear(2, 2)
    StrictCheckpointer(model).load(url)
    assert torch.equal(model.weight, torch.load(path)["model"]["weight"])


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    "url, reason",
    [
        ("SERVER/none.pth", "HTTP Error 404"),
        ("http://127.0.0.1:PORT/file.pth", "refused"),
        ("http://", ""),
        ("http://[", ""),
        ("https://127.0.0.1:PORT/file.pth", "refused"),
        ("http://127.0.0.1:x/file.pth", ""),
        ("other://host/file.pth", "unknown kind of URL"),
        ("SERVER/../../file.pth", "must not contain '..'"),
        ("http://127.0.0.1:PORT/\x1b[31m", ""),
    ],
)
def test_what_cannot_be_had(url, reason, server, tmp_path):
    url = url.replace("SERVER", server).replace("PORT", str(unused_port()))
    for use in (
        download_checkpoint,
        lambda url: require_weights(job(url), eval_only=True, resume=False),
        StrictCheckpointer(nn.Linear(2, 2)).load,
    ):
        with pytest.raises(UserError) as error:
            use(url)
        message = str(error.value)
        assert message.startswith("Cannot download ") and reason in message
        assert message.endswith("or download the file and name its path.")
        assert message.isprintable()
    assert not list(tmp_path.glob("cache/**/*.pth"))
    assert not (tmp_path / "file.pth").exists()


def test_silent_server(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("apa_det.checkpoint.download._TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file.pth"
        with pytest.raises(UserError, match="Cannot download .* timed out"):
            download_checkpoint(url)
    assert socket.getdefaulttimeout() is None
