"""What `ease deploy init` writes, a host's own data, and (slow) a federation of processes with TLS and keys."""

import csv
import json
import re
import stat
import subprocess

import numpy as np
import pytest
import torch
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from ease_flwr.clients.contrastive import Contrastive
from PIL import Image
from typer.testing import CliRunner

from ease_flwr import cli
from ease_flwr.client_app import on_host
from ease_flwr.config import ConfigError, DataConfig, ForgetConfig
from ease_flwr.data import folder as hosts_data
from ease_flwr.data import formats
from ease_flwr.hosts import demo, deploy, processes
from tests.photographs import write_photographs
from tests.small import small_experiment
from tests.test_bilateral import Memory

HOSTS = ["hospital-1", "hospital-2", "clinic_3"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation") / "new"
    deploy.init(folder, HOSTS, "fl.example.org", 9443)
    return folder


def test_the_servers_certificate_is_signed_for_its_address(written):
    root = x509.load_pem_x509_certificate((written / "ca" / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((written / "server" / "server.pem").read_bytes())
    server.verify_directly_issued_by(root)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", str(written / "ca" / "ca.crt"), str(written / "server" / "server.pem")],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("OK"), done.stderr


def test_secrets_are_private_and_each_host_has_its_own_key(written):
    secrets = [written / "ca" / "ca.key", written / "server" / "server.key", *written.glob("hosts/*/node.key")]
    assert len(secrets) == 5
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in secrets)
    publics = set()
    for host in HOSTS:
        key = load_ssh_private_key((written / "hosts" / host / "node.key").read_bytes(), None)
        public = load_ssh_public_key((written / "hosts" / host / "node.key.pub").read_bytes())
        assert key.public_key() == public
        publics.add((written / "hosts" / host / "node.key.pub").read_text())
        assert not (written / "hosts" / host / "ca.key").exists()  # hosts get the certificate alone
    assert len(publics) == 3


def test_units_and_commands(written):
    unit = (written / "hosts" / "hospital-2" / "ease-supernode.service").read_text()
    for line in (
        "Restart=always",
        "RestartSec=30",
        "--root-certificates /opt/ease/hospital-2/ca.crt",
        'client-name="hospital-2"',
    ):
        assert line in unit
    assert str(written) not in unit
    server = (written / "server" / "ease-superlink.service").read_text()
    assert "--enable-supernode-auth" in server
    assert "--insecure" not in server
    register = (written / "register.sh").read_text()
    assert register.count("flwr supernode register") == 3
    subprocess.run(["sh", "-n", str(written / "register.sh")], check=True)
    compose = yaml.safe_load((written / "compose.yaml").read_text())
    assert set(compose["services"]) == {"superlink", *HOSTS}
    assert compose["services"]["clinic_3"]["restart"] == "always"
    assert "9443/tcp" in (written / "FIREWALL.md").read_text()


def test_what_cannot_be_written_is_said(tmp_path):
    def fails(match, *arguments, **options):
        with pytest.raises(ConfigError, match=match):
            deploy.init(*arguments, **options)

    fails(r"--hosts: '../x' cannot name a folder", tmp_path / "a", ["b", "../x"], "server")
    fails(r"--hosts a,a: two different names at least", tmp_path / "a", ["a", "a"], "server")
    fails(r"--address 'x y': expected the name or IP", tmp_path / "a", ["a", "b"], "x y")
    fails(r"--insecure is for localhost and 127.0.0.1 only", tmp_path / "a", ["a", "b"], "server", insecure=True)
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "ca.key").write_text("secret")
    fails(r"is not empty: keys are never overwritten", tmp_path / "full", ["a", "b"], "server")
    deploy.init(tmp_path / "open", ["a", "b"], "localhost", insecure=True)
    assert "--insecure" in (tmp_path / "open" / "server" / "ease-superlink.service").read_text()


# ---- a host's own data ------------------------------------------------------------------------------------------------------


def as_csv(root):
    """The same photographs with an index of lines."""
    index = json.loads((root / "dataset.json").read_text())["images"]
    (root / "dataset.json").unlink()
    with (root / "captions.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image", "caption", "label", "split"])
        for image in index:
            writer.writerows([image["filename"], s["raw"], image.get("label", ""), image["split"]] for s in image["sentences"])


def test_three_kinds_of_index_say_the_same(tmp_path):
    for name in ("karpathy", "csv", "json"):
        write_photographs(tmp_path / name, train=8, val=3, test=4)
    as_csv(tmp_path / "csv")
    index = json.loads((tmp_path / "json" / "dataset.json").read_text())["images"]
    (tmp_path / "json" / "dataset.json").unlink()
    plain = [
        {"image": i["filename"], "captions": [s["raw"] for s in i["sentences"]], "label": i["label"], "split": i["split"]}
        for i in index
    ]
    (tmp_path / "json" / "captions.json").write_text(json.dumps(plain))
    found = [formats.read_index(str(tmp_path / name)) for name in ("karpathy", "csv", "json")]
    told = [{s: [(e.file.name, e.captions, e.label) for e in entries] for s, entries in splits.items()} for splits in found]
    assert told[0] == told[1] == told[2]


def test_an_index_without_splits_is_split_by_name():
    splits = [formats.drawn_split(f"image-{i}.jpg") for i in range(1000)]
    assert splits == [formats.drawn_split(f"image-{i}.jpg") for i in range(1000)]
    assert 60 < splits.count("val") < 140
    assert 60 < splits.count("test") < 140


def test_each_host_sees_its_own_folder_alone(tmp_path):
    write_photographs(tmp_path, train=9, val=3, test=4)
    experiment = small_experiment(**{"data.kind": "folder", "data.names": "north,south", "forget.targets": "south"})
    server = hosts_data.load(experiment.data, 0)
    assert server.clients == ("north", "south")
    assert server.resolve(ForgetConfig(scenario="class", targets=("a",))).targets == ("a",)
    with pytest.raises(ConfigError, match=r"name what is to be forgotten; nothing can be drawn from data of others"):
        server.resolve(ForgetConfig(scenario="class"))
    there = on_host(experiment, {"client-name": "south", "data-root": str(tmp_path)})
    data = hosts_data.load(there.data, 0).client("south")
    assert len(data.train) == 9
    sets = data.evaluation("test", tuple(ForgetConfig(targets=("south",)).forget_sets()))
    assert {name: len(s.query) for name, s in sets.items()} == {"forget": 6, "test": 4}
    # a third of its own photographs is judged as validation
    with pytest.raises(ConfigError, match=r"data.names: name the clients, two at least"):
        hosts_data.load(DataConfig(kind="folder"), 0)


def test_data_check_names_everything_that_is_wrong(tmp_path):
    write_photographs(tmp_path, train=8, val=3, test=4)
    good = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path)])
    assert good.exit_code == 0
    assert good.output.strip().endswith("15 images, 30 captions, 3 labels, 8 train, 3 val, 4 test")
    index = json.loads((tmp_path / "dataset.json").read_text())
    index["images"][0]["filename"] = "gone.png"
    index["images"][1]["sentences"] = []
    index["images"][3]["filename"] = index["images"][2]["filename"]
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    (tmp_path / "images" / index["images"][4]["filename"]).write_bytes(b"no picture")
    whole = tmp_path / "images" / index["images"][5]["filename"]
    Image.new("RGB", (64, 64)).save(whole)
    whole.write_bytes(whole.read_bytes()[:60])
    said = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path)])
    assert said.exit_code == 1
    for problem in ("gone.png is named in", "has no caption", "is named twice", "image cannot be read", "5 problems"):
        assert problem in said.output
    none = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path / "images")])
    assert none.exit_code == 2
    assert "no index there" in none.output


@pytest.mark.slow
def test_three_supernodes_with_tls_give_the_adapters_of_the_simulation(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    said = []
    assert demo.demo(tmp_path / "demo", said.append) == 0, said
    assert "adapters of the deployed run and of the simulation are the same, bit for bit" in said
    assert any("TLS and node authentication" in line for line in said)
    assert any(line.startswith("a training message took") for line in said)
    assert not processes.listens(int(said[0].split(":")[1].split(",")[0]))


def test_what_a_host_keeps_on_disk_changes_nothing(tmp_path):
    write_photographs(tmp_path / "data", train=9, val=3, test=4)
    text = (tmp_path / "data" / "dataset.json").read_text()
    (tmp_path / "data" / "dataset.json").write_text(re.sub(r'"raw": "[^"]*"', '"raw": "red circle"', text))
    config = {"data.kind": "folder", "data.names": "north,south", "forget.targets": "south", "data.image_size": 64}
    node = {"data-root": str(tmp_path / "data")}
    found = []
    for cache in ("", str(tmp_path / "cache"), str(tmp_path / "cache")):
        hosts_data.load.cache_clear()
        experiment = on_host(small_experiment(**config), {**node, "cache": cache})
        client = Contrastive(experiment, "north", hosts_data.load(experiment.data, 0), Memory())
        found.append((client.data.train.images, client.encode(client.data.train).images))
        kept = sorted(p.name for p in (tmp_path / "cache").glob("*.npy"))
        assert len(kept) == (0 if not cache else 2)
    for images, activations in found[1:]:
        assert (images == found[0][0]).all()
        assert torch.equal(activations, found[0][1])
    assert isinstance(found[2][0], np.memmap)
    (tmp_path / "data" / "images" / "train-0.png").touch()  # changed: read again
    hosts_data.load.cache_clear()
    _ = hosts_data.load(experiment.data, 0).client("north").train
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3
