"""The reproductions in docs/upstream.md are run as they stand there."""

import re

from ease_flwr.config import APP


def test_peft_doubles_out_proj(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (APP / "docs" / "upstream.md").read_text(), re.S)
    exec(compile(code, "docs/upstream.md", "exec"), {})
    doubled, once = (float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines())
    assert doubled < 1e-5
    assert once > 1
