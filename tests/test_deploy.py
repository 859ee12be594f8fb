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
from ease_flwr.data import entries, formats
from ease_flwr.data import folder as hosts_data
from ease_flwr.hosts import demo, deploy, processes, settings
from ease_flwr.hosts.settings import Deployment
from tests.photographs import write_photographs
from tests.small import small_experiment
from tests.test_bilateral import Memory

SAME = {"port": 9500, "loopback_port": 9500}
HOSTS = ("hospital-1", "hospital-2", "clinic_3")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation") / "new"
    deploy.init(folder, Deployment(address="fl.example.org", hosts=HOSTS, port=9443, allow=("192.0.2.7", "2001:db8::/64")))
    return folder


def test_the_servers_certificate_is_signed_for_its_address(written):
    root = x509.load_pem_x509_certificate((written / "ca" / "ca.pem").read_bytes())
    server = x509.load_pem_x509_certificate((written / "server" / "server.pem").read_bytes())
    server.verify_directly_issued_by(root)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    trusted = written / "hosts" / "clinic_3" / "ca.crt"
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", str(trusted), str(written / "server" / "server.pem")],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("OK"), done.stderr


def test_secrets_are_private_and_each_host_has_its_own_key(written):
    secrets = {f for f in written.rglob("*") if f.is_file() and b"PRIVATE KEY" in f.read_bytes()}
    assert secrets == {written / "ca" / "ca.pem", written / "server" / "server.key", *written.glob("hosts/*/node.key")}
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in secrets)
    assert stat.S_IMODE(written.stat().st_mode) == 0o700
    publics = set()
    for host in HOSTS:
        key = load_ssh_private_key((written / "hosts" / host / "node.key").read_bytes(), None)
        public = load_ssh_public_key((written / "server" / "keys" / f"{host}.pub").read_bytes())
        assert key.public_key() == public
        publics.add((written / "hosts" / host / "node.key.pub").read_text())
    assert len(publics) == 3


def test_units_and_settings(written):
    home = written / "hosts" / "hospital-2"
    unit = (home / "ease-supernode.service").read_text().splitlines()
    for line in (
        "Restart=always",
        "RestartSec=30",
        "User=ease",
        "ExecStart=/opt/ease/venv/bin/ease deploy node /opt/ease/hospital-2",
        "ReadWritePaths=/opt/ease/hospital-2",
    ):
        assert line in unit
    there = settings.read(settings.Host, home / "node.toml")
    assert there == settings.Host(client_name="hospital-2", server="fl.example.org:9443", data_root="/data")
    link = settings.read(settings.Server, written / "server" / "link.toml")
    assert (link.here, link.door, link.insecure) == ("127.0.0.1:9093", "127.0.0.1:9443", False)
    server = (written / "server" / "ease-superlink.service").read_text()
    assert "ExecStart=/opt/ease/venv/bin/ease deploy link /opt/ease/server\n" in server
    proxy = (written / "server" / "ease-proxy.service").read_text()
    assert "ExecStart=/usr/sbin/nginx -p /opt/ease/server -c nginx.conf\n" in proxy
    assert "User=ease\n" in proxy
    connection = (written / "server" / "flwr" / "config.toml").read_text()
    assert 'address = "127.0.0.1:9093"\nroot-certificates = "/opt/ease/server/ca.crt"' in connection
    for folder, service, beside in ((written / "server", "superlink", {"proxy"}), (home, "supernode", set())):
        compose = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
        assert set(compose) == {service} | beside
        assert compose[service]["restart"] == "always"
        assert compose[service]["logging"]["options"]["max-size"] == "10m"
        assert compose[service]["healthcheck"]["test"][-1] == "/federation"
    rules = (written / "server" / "ease.nft").read_text()
    assert "elements = { 192.0.2.7 }" in rules
    assert "elements = { 2001:db8::/64 }" in rules
    assert 'tcp dport 9093 meta skuid != { "root", "ease" }' in rules


def test_what_cannot_be_written_is_said(tmp_path):
    def fails(match, folder, *hosts, **options):
        with pytest.raises(ConfigError, match=match):
            deploy.init(tmp_path / folder, Deployment(hosts=hosts, **{"address": "server", **options}))

    fails(r"--hosts: '../x' cannot name a folder: letters", "a", "b", "../x")
    fails(r"--hosts: 'server' cannot name a folder: there is a folder server of ours", "a", "server")
    fails(r"--hosts a,a: one name at least, and none twice", "a", "a", "a")
    fails(r"--hosts : one name at least", "a")
    fails(r"--address 'x y': expected the name or IP", "a", "b", address="x y")
    fails(r"--prefix 'ease': expected an absolute path", "a", "b", prefix="ease")
    fails(r"--user 'a b': expected the name of an account", "a", "b", user="a b")
    fails(r"--allow: '300.1.1.1' is no IP address and no network", "a", "b", allow=("300.1.1.1",))
    fails(r"--port 9500, --loopback-port: the same, but nginx and the SuperLink need one each", "a", "b", **SAME)
    fails(r"--insecure is for localhost and 127.0.0.1 only", "a", "b", insecure=True)
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "ca.key").write_text("secret")
    fails(r"is not empty: keys are never overwritten", "full", "a")
    deploy.init(tmp_path / "open", Deployment(hosts=("a",), address="localhost", insecure=True))
    link = settings.read(settings.Server, tmp_path / "open" / "server" / "link.toml")
    assert (link.here, link.insecure) == ("127.0.0.1:9092", True)  # hosts of loopback call it, without nginx
    assert not list((tmp_path / "open").rglob("*nginx*"))
    assert settings.read(settings.Host, tmp_path / "open" / "hosts" / "a" / "node.toml").insecure
    fails(rf"has a federation already: `ease deploy add-host {tmp_path}/open NAME` adds", "open", "a")
    with pytest.raises(ConfigError, match=r"open was made with --insecure: it has no keys and no certificates"):
        deploy.replace_key(tmp_path / "open", "a")


@pytest.mark.parametrize(("port", "loopback"), [(443, 9093), (9092, 9093), (9093, 9092)])
def test_a_folder_of_an_earlier_version_can_be_worked_with(tmp_path, port, loopback):
    """Its federation.json knows no loopback port, and its port could be any."""
    deploy.init(tmp_path / "f", Deployment(address="server", hosts=("a",)))
    file = tmp_path / "f" / "federation.json"
    values = json.loads(file.read_text()) | {"port": port}
    del values["loopback_port"]
    file.write_text(json.dumps(values))
    assert "carry" in deploy.add_host(tmp_path / "f", "b")
    found = settings.opened(tmp_path / "f")
    assert (found.hosts, found.port, found.loopback_port) == (("a", "b"), port, loopback)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            'client-name = "a"\nserver = "x:1"\nprot = 2',
            "unknown key prot (known: client-name, server, port, data-root, device, ",
        ),
        ('server = "x:1"', "no client-name: it must be given"),
        ('client-name = "a"\nserver = "x"', "server='x': expected host:port, for example fl.example.org:9092"),
        ('client-name = "a"\nserver = "x:1"\nport = "many"', "port='many': Input should be a valid integer"),
        ('client-name = "a"\nserver = "x:1"\ncache = \'a"b\'', "quotes, backslashes and line breaks cannot be passed on"),
        ("client-name = a", "not TOML: "),
    ],
)
def test_a_mistake_in_node_toml_is_one_line(text, mistake, tmp_path):
    (tmp_path / "node.toml").write_text(text)
    with pytest.raises(ConfigError) as said:
        settings.read(settings.Host, tmp_path / "node.toml")
    assert str(said.value).startswith(f"{tmp_path}/node.toml: ")
    assert mistake in str(said.value)
    assert "\n" not in str(said.value)


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
    splits = [entries.drawn_split(f"image-{i}.jpg") for i in range(1000)]
    assert splits == [entries.drawn_split(f"image-{i}.jpg") for i in range(1000)]
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
    assert good.output.splitlines()[-2:] == [
        "rows: 15 read, 15 used, 0 left out, 0 wrong",
        "15 images, 30 captions, 3 labels, 8 train, 3 val, 4 test",
    ]
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
    assert any(re.search(r"nginx before it on|no /usr/sbin/nginx here", line) for line in said)
    assert not processes.listens(int(said[0].split(":")[1].split(",")[0]))


def test_what_a_host_keeps_on_disk_changes_nothing(tmp_path):
    write_photographs(tmp_path / "data", train=9, val=3, test=4)
    text = (tmp_path / "data" / "dataset.json").read_text()
    (tmp_path / "data" / "dataset.json").write_text(re.sub(r'"raw": "[^"]*"', '"raw": "red circle"', text))
    config = {"data.kind": "folder", "data.names": "north,south", "forget.targets": "south", "data.image_size": 64}
    node = {"client-name": "north", "data-root": str(tmp_path / "data")}
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
