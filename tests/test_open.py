"""`ease open`: what the page is told of a run, what its search finds, and who is answered."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

import ease_flwr as ease
from ease_flwr import following
from ease_flwr.audit.page import BEFORE_TABLES
from ease_flwr.config import ConfigError
from ease_flwr.web import search, server


def write(folder, status, *events, log="", error=""):
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"status": status, "error": error}))
    (folder / "log.txt").write_text(log)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def png(width, height):
    """A picture of one grey that is small on disk."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def round_(model, at, **more):
    return {"model": model, "round": at, "rounds_in_all": at, "last": 5, "asked": 3, "answered": 2, "loss": [0.5, 1.5]} | {
        "seconds": 10.0 * at,
        "eta": 50.0 - 10 * at,
        **more,
    }


# ---- what is told of a run --------------------------------------------------------------------------------------------------


def test_a_run_at_work(tmp_path):
    """By hand: two rounds of learning, one count of recall between them, and half a line that is being written."""
    seen = {"model": "learn", "round": 1, "rounds_in_all": 1, "validation": {"retain": 40.0, "forget": 30.0}}
    write(tmp_path, "running", {"roll_call": {}}, round_("learn", 1), seen, round_("learn", 2, loss=[0.25]), log="a\nb\n")
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"model": "learn", "round": 3, "los')
    found = following.situation(tmp_path)
    assert found["status"] == "running"
    assert found["round"] == {
        "model": "learn",
        "round": 2,
        "last": 5,
        "answered": 2,
        "asked": 3,
        "seconds": 20.0,
        "eta": 30.0,
        "loss": 0.25,
    }
    assert found["recall"] == {"retain": {"learn": [[1, 40.0]]}, "forget": {"learn": [[1, 30.0]]}}
    assert found["loss"] == {"learn": [[1, 1.0], [2, 0.25]]}
    assert found["log"] == ["a", "b"]
    assert not found["over"]
    assert not found["report"]


def test_before_the_first_round_and_after_the_last_word(tmp_path):
    write(tmp_path, "submitted")
    assert following.situation(tmp_path)["round"] == {}
    assert following.situation(tmp_path)["silent"] == 0
    later = (tmp_path / "state.json").stat().st_mtime + 301
    assert following.situation(tmp_path, later)["silent"] > 300
    write(tmp_path, "failed", error="no client answers")
    found = following.situation(tmp_path, later)
    assert (found["error"], found["silent"], found["over"]) == ("no client answers", 0, False)


def test_only_rounds_of_this_submission_are_where_it_is(tmp_path):
    before = [{"roll_call": {}}, round_("learn", 5), {"roll_call": {}}]
    write(tmp_path, "running", *before)
    assert following.situation(tmp_path)["round"] == {}
    write(tmp_path, "running", *before, round_("forget", 1))
    assert following.situation(tmp_path)["round"]["model"] == "forget"
    write(tmp_path, "submitted", *before, round_("forget", 1))
    assert following.situation(tmp_path)["round"] == {}
    write(tmp_path, "running", 5, {"loss": [], "last": 3}, {"loss": [1.0]})  # of no or another version
    assert following.situation(tmp_path)["loss"] == {}


def test_when_a_run_is_over_and_has_a_report(reported, tmp_path):
    folder = shutil.copytree(reported, tmp_path / "run")
    assert following.finished(folder)
    assert following.fresh_report(folder)
    write(folder / "audit-full", "running")  # an audit at work, or one that was killed, hides nothing
    assert following.finished(folder)
    for status in ("failed", "running", "submitted"):  # a further request
        write(folder, status)
        assert not following.finished(folder)
    write(folder, "finished")
    page = (folder / "report.html").read_text()
    (folder / "report.html").write_text(page.replace(BEFORE_TABLES, ""))  # of a version before
    assert not following.fresh_report(folder)
    (folder / "report.html").write_text(page)
    os.utime(folder / "report.html", (1, 1))
    assert not following.fresh_report(folder)
    (folder / "results.json").unlink()
    assert not following.finished(folder)


# ---- search -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(reported):
    return search.Search(reported, search.Own(most=200))


def test_a_search_finds_what_the_model_finds(found, reported):
    """The five pictures nearest to a caption, by hand from the embeddings of the Python API."""
    pairs, model = found.gallery.pairs, ease.open_run(reported).model("unlearned")
    assert list(found.models) == ["original", "unlearned", "retrain"]
    caption = pairs.captions[7][0]
    nearest = (model.images(pairs.images) @ model.texts([caption])[0]).argsort(descending=True)[:5].tolist()
    answer = found.pictures(f" {caption} ")["unlearned"]
    assert [a["pair"] for a in answer] == nearest
    assert all(a["right"] == (caption in pairs.captions[a["pair"]]) for a in answer)
    asked = model.images([pairs.images[3]])[0]
    nearest = (model.texts([c[0] for c in pairs.captions]) @ asked).argsort(descending=True)[:5].tolist()
    assert [a["pair"] for a in found.captions(3)["unlearned"]] == nearest
    assert all(a["right"] == (a["pair"] == 3) for a in found.captions(3)["unlearned"])
    for name, model in found.models.items():  # pairs that a model finds are marked, and no others
        similarity = model.images(pairs.images) @ model.texts([c[0] for c in pairs.captions]).T
        for best, ask in ((similarity.argmax(dim=0), found.pictures), (similarity.argmax(dim=1), found.captions)):
            known = next(i for i, b in enumerate(best.tolist()) if b == i)
            query = pairs.captions[known][0] if ask == found.pictures else known
            assert ask(query)[name][0]["right"], name


def test_the_gallery_has_each_pair_once_and_every_set(found):
    kept = found.gallery
    assert len(kept.pairs) == len(kept.sets) <= 200
    assert {"forget_exclusive", "retain", "test"} <= set(kept.sets)
    assert len({search._identity(kept.pairs, i) for i in range(len(kept.pairs))}) == len(kept.pairs)
    assert {kept.sets[i] for i in kept.examples()} == set(kept.sets)
    assert len(kept.examples()) <= search.EXAMPLES * len(set(kept.sets))


def test_pairs_that_are_elsewhere(whole, monkeypatch):
    with pytest.raises(ConfigError, match="--client nobody: no client of this run: there are client-0, client-1"):
        search.gallery(whole, search.Own(client="nobody"))
    with pytest.raises(ConfigError, match="this run's pairs are drawn, and need no folder"):
        search.gallery(whole, search.Own("/data"))
    alone = search.gallery(whole, search.Own(client="client-2"))
    assert 0 < len(alone.pairs) < len(search.gallery(whole, search.Own()).pairs)
    experiment, submitted = server.config.from_run_config(search.read_run_config(whole))
    hosts = experiment.data.model_copy(update={"kind": "folder", "names": ("a", "b")})
    monkeypatch.setattr(server.config, "from_run_config", lambda _: (experiment.model_copy(update={"data": hosts}), submitted))
    with pytest.raises(ConfigError, match=r"its pairs are on the hosts.*--data.*--client"):
        search.gallery(whole, search.Own())


# ---- who is answered --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(reported):
    made = TestClient(server.application(reported, "secret", search.Own(most=200)), base_url="http://127.0.0.1")
    limit = time.monotonic() + 120
    while made.get("/secret/examples").status_code == 202 and time.monotonic() < limit:
        time.sleep(0.1)
    return made


def test_without_the_token_nothing_is_there(client):
    for path in ("/", "/situation", "/wrong/", "/wrong/situation", "/secretx/", "/secret/../situation"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert answer.text == "Not Found"
    assert client.get("/secret/situation", headers={"host": "evil.example"}).status_code == 400
    answer = client.get("/secret/")
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_page_is_the_report_with_a_search(client, reported):
    page = client.get("/secret/").text
    first, tables = (reported / "report.html").read_text().split(BEFORE_TABLES)
    assert page.startswith(first)
    assert page.endswith(BEFORE_TABLES + tables)
    assert 'id="caption"' in page
    examples = client.get("/secret/examples").json()
    picture = client.get(f"/secret/pictures/{examples['pairs'][0]['pair']}")
    assert picture.content[:8] == b"\x89PNG\r\n\x1a\n"
    answer = client.get("/secret/pictures", params={"caption": examples["pairs"][0]["caption"]}).json()["models"]
    assert [len(v) for v in answer.values()] == [5, 5, 5]
    assert client.post("/secret/captions", content=picture.content).json()["models"].keys() == answer.keys()
    assert client.get("/secret/captions/0").json()["models"].keys() == answer.keys()


@pytest.mark.parametrize(
    ("how", "path", "more", "status", "error"),
    [
        ("GET", "pictures?caption=%20", {}, 400, "type a caption"),
        ("GET", "pictures?caption=xyzzy", {}, 400, "tokenizer: 'xyzzy' has unknown words ['xyzzy']"),
        ("GET", "pictures/100000", {}, 404, "no such picture"),
        ("GET", "captions/100000", {}, 404, "no such picture"),
        ("POST", "captions", {"content": b"GIF89a"}, 400, "not a picture"),
        ("POST", "captions", {"content": png(10_000, 8_001)}, 400, "not a picture: it has more than 80 million pixels"),
        ("POST", "captions", {"content": b"x" * (server.LARGEST + 1)}, 413, "the file has more than 20 MB"),
    ],
)
def test_what_cannot_be_answered_is_said(client, how, path, more, status, error):
    answer = client.request(how, f"/secret/{path}", **more)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)


def test_a_run_without_results_has_no_search(learnt_only):
    client = TestClient(server.application(learnt_only, "secret", search.Own()), base_url="http://127.0.0.1")
    assert client.get("/secret/examples").json() == {"error": "a search needs a run that has finished"}
    assert 'data-at-work="yes"' in client.get("/secret/").text
    assert client.get("/secret/pictures/0").status_code == 404
    assert client.get("/secret/captions/0").json() == {"error": "a search needs a run that has finished"}


def test_models_are_loaded_anew_where_the_run_has_others(reported, tmp_path, monkeypatch):
    folder, made = shutil.copytree(reported, tmp_path / "run"), []
    monkeypatch.setattr(server, "Search", lambda *words: made.append(words) or search.Search.__new__(search.Search))
    page = server.Page(folder, search.Own(client="client-1"))
    assert page.search() is page.search()
    first = page.search()
    os.utime(folder / "results.json", (2e9, 2e9))
    assert page.search() is not first
    assert made == [(folder, search.Own(client="client-1"))] * 2


def test_what_cannot_be_searched_says_why(reported):
    client = TestClient(server.application(reported, "secret", search.Own(client="nobody")), base_url="http://127.0.0.1")
    limit = time.monotonic() + 60
    while client.get("/secret/examples").status_code == 202 and time.monotonic() < limit:
        time.sleep(0.05)
    for path in ("examples", "pictures?caption=red", "captions/0"):
        assert client.get(f"/secret/{path}").json()["error"].startswith("--client nobody: no client of this run")


@pytest.fixture
def learnt_only(tmp_path):
    write(tmp_path, "running", round_("learn", 1))
    return tmp_path


def test_the_command(tmp_path):
    def ease_open(*words):
        return subprocess.run(
            [sys.executable, "-m", "ease_flwr", "open", *words], capture_output=True, text=True, timeout=60, check=False
        )

    done = ease_open(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"ease open: {tmp_path}: no run there: give the folder of one\n"
    write(tmp_path, "running")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = ease_open(str(tmp_path), "--port", port)
        assert done.stderr == f"ease open: --port {port}: Address already in use: give another, or 0 for any free one\n"


def test_it_listens_on_loopback_with_a_token_of_its_own(learnt_only, monkeypatch, capsys):
    listening = []
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: listening.extend(sockets))
    opened = []
    monkeypatch.setattr(server.webbrowser, "open", lambda uri: opened.append(Path(uri.removeprefix("file://"))))
    monkeypatch.setenv("DISPLAY", ":0")
    tokens = set()
    for browser in (True, False):
        server.serve(learnt_only, search.Own(), 0, browser)
        address = capsys.readouterr().out.splitlines()[0]
        host, port, token = re.fullmatch(r"http://([0-9.]+):(\d+)/([\w-]{22})/", address).groups()
        assert (host, int(port)) == listening[-1].getsockname() == ("127.0.0.1", int(port))
        tokens.add(token)
    for one in listening:
        one.close()
    assert len(tokens) == 2
    (page,) = opened  # the address is in a file that only the user can read, not in the arguments of a program
    assert page.stat().st_mode & 0o077 == 0
    assert any(token in page.read_text() for token in tokens)
    page.unlink()
