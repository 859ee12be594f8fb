"""Text towers of Hugging Face from folders: they have words, their code is never run, and all they are read from counts."""

import json
import shutil

import pytest

from ease_flwr.config import ConfigError, LoraConfig, ModelConfig, model_sha256
from ease_flwr.model import adapters, published
from tests.models import CONFIG, PREPROCESS, WEIGHTS, with_hugging_face, write_folder, write_weights

transformers = pytest.importorskip("transformers", reason="pip install 'ease-flwr[towers]'")


@pytest.fixture
def folder(tmp_path):
    """A published model that names its text tower beside it, so that it can lie anywhere."""
    home = tmp_path / "model"
    home.mkdir()
    write_folder(home, with_hugging_face(home), PREPROCESS)
    say(home, hf_model_name="text", hf_tokenizer_name="text")
    return home


def say(folder, **text):
    said = json.loads((folder / CONFIG).read_text())
    said["model_cfg"]["text_cfg"] |= text
    (folder / CONFIG).write_text(json.dumps(said))


def change(file, **said):
    file.write_text(json.dumps(json.loads(file.read_text()) | said))


def opened(folder):
    return published.opened(ModelConfig(weights=str(folder)), empty=True)


def test_a_tokenizer_without_words_is_refused(folder):
    """transformers makes one that knows special tokens alone: every caption would be the same."""
    assert len({tuple(row) for row in opened(folder).tokenize(["one", "two", "train"]).tolist()}) == 3
    for file in folder.glob("text/tokenizer*"):
        file.unlink()
    assert len({tuple(row) for row in opened(folder).tokenize(["one", "two", "train"]).tolist()}) == 3  # of vocab.txt
    (folder / "text" / "vocab.txt").unlink()
    with pytest.raises(ConfigError, match=r"^model: its tokenizer .*text has no words: fetch tokenizer.json, or"):
        opened(folder)


def test_a_tokenizer_that_is_not_named_is_not_that_of_open_clip(folder):
    """open_clip would take its own, whose words are numbers of other words there, where they are not too many."""
    change(folder / "text" / "config.json", vocab_size=60_000)
    write_weights(folder / WEIGHTS, json.loads((folder / CONFIG).read_text())["model_cfg"] | {"text_cfg": at(folder)})
    opened(folder)
    for nothing in ("", None):
        say(folder, hf_tokenizer_name=nothing)
        with pytest.raises(
            ConfigError, match=r"^model: its text tower is that of .*text and no tokenizer is named: say text_cfg"
        ):
            opened(folder)


def at(folder):
    """Its text tower, by where it lies."""
    text = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]
    return text | {key: str(folder / text[key]) for key in ("hf_model_name", "hf_tokenizer_name")}


def test_no_code_of_a_folder_is_run_and_nobody_is_asked_whether_it_may(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    for name in ("tokens", "settings"):
        (folder / "text" / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    change(folder / "text" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokens.Mine", None]}, tokenizer_class="Mine")
    say(folder, tokenizer_kwargs={"trust_remote_code": True})
    opened(folder)
    assert not ran.exists()
    change(folder / "text" / "config.json", auto_map={"AutoConfig": "settings.Mine"}, model_type="mine")
    with pytest.raises(ConfigError, match=r"cannot be built \(ValueError: The repository .* contains custom code"):
        opened(folder)
    assert not ran.exists()


def test_a_text_tower_is_told_apart_by_what_it_is_read_from_and_not_by_where_it_lies(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    say(moved, hf_model_name=str(moved / "text"), hf_tokenizer_name=str(moved / "text"))
    first, second = (ModelConfig(weights=str(where)) for where in (folder, moved))
    assert model_sha256(first) == model_sha256(second)
    seen = {model_sha256(first)}
    for file in ("config.json", "tokenizer_config.json", "vocab.txt"):
        there = moved / "text" / file
        there.write_text(there.read_text() + "\n")
        seen.add(model_sha256(second))
    assert len(seen) == 4


def test_mt5_looks_at_any_number_of_tokens_and_its_blocks_are_counted(folder):
    """Its blocks are made of things that are numbered themselves."""
    size = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
    text = transformers.MT5Config(vocab_size=len(opened(folder).tokenize.inner.tokenizer), **size)
    text.save_pretrained(folder / "text")
    said = json.loads((folder / CONFIG).read_text())["model_cfg"]
    said["text_cfg"] |= {"hf_model_name": str(folder / "text"), "hf_tokenizer_name": str(folder / "text")}
    del said["text_cfg"]["context_length"]
    write_folder(folder, said, PREPROCESS)
    lora = LoraConfig(rank=1, targets=("attn", "q"), text_from=2)
    found = adapters.load.__wrapped__(ModelConfig(weights=str(folder)), lora, 0)
    of_text = [block.name.partition(".lora_")[0] for block in found.blocks if block.tower == "text"]
    assert set(of_text) == {"text.transformer.block.2.layer.0.SelfAttention.q"}
    assert found.base.tokenize(["one"]).shape == (1, 77)
