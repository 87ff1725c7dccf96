"""What the tests share: a home for runs that trains one base for all, and a tiny checkpoint with adapters."""

import contextlib
import gc
import importlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small for two threads to help
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("MAKEFLAGS", None)  # a make that a test starts is not the child of the one that runs the tests
os.environ.pop("MAKELEVEL", None)

import pytest

from rlrecipes import __main__ as command_line
from rlrecipes.run.checksums import sealed
from rlrecipes.run.folder import write_json

ROOT = Path(__file__).resolve().parent.parent

WITHOUT_TORCH = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "trl", "peft", "datasets", "wandb"):
            raise AssertionError(f"{{name}} is imported")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {str(ROOT)!r})
sys.argv[0] = "rlrecipes"
runpy.run_module("rlrecipes", run_name="__main__")
"""
"""Runs the command line with the heavy libraries out of reach."""

SMALLEST_BASE = (
    *("base.max_steps=3", "base.num_hidden_layers=1", "base.hidden_size=64", "base.num_attention_heads=2"),
    *("base.intermediate_size=128", "base.per_device_train_batch_size=2"),
)
SHORTEST = (
    *("track.wandb=off", "evaluate.limit=6", "evaluate.policies=base,sft,best4,ppo"),
    "lora.lora_dropout=0.1",
    *("sft.max_steps=2", "sft.per_device_train_batch_size=4"),
    *("reward.max_steps=2", "reward.per_device_train_batch_size=4"),
    *("ppo.total_episodes=16", "ppo.per_device_train_batch_size=8", "ppo.response_length=6", "ppo.anyway=true"),
)
SMALLEST = (*SMALLEST_BASE, *SHORTEST)
"""Settings under which a whole road takes two seconds; it learns nothing, but every step of it is taken."""


def last_of_each(arguments: Sequence[str]) -> list[str]:
    """Arguments without the settings that a later one names again: so a test changes one of `SMALLEST`."""
    keys = [re.match(r"[a-z]+\.\w+=", argument) for argument in arguments]
    last = {key[0]: place for place, key in enumerate(keys) if key}
    return [
        argument for i, (argument, key) in enumerate(zip(arguments, keys, strict=True)) if not key or last[key[0]] == i
    ]


def main(arguments: Sequence[str]) -> int:
    """The command line on `last_of_each` setting, since it refuses a setting that is given twice."""
    return command_line.main(last_of_each(arguments))


def smallest(arguments: Sequence[str]) -> list[str]:
    """Those of `SMALLEST` that take effect beside a command's other arguments."""
    idle = [("--model", "base."), ("terms.learned=0", "reward."), ("terms.learned=0", "ppo.anyway")]
    unused = tuple(start for given, start in idle if given in arguments)
    return [setting for setting in SMALLEST if not setting.startswith(unused)]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(count: int) -> list[dict]:
    """Rows of a parallel text."""
    return [{"source": f"Das {i}. Kind liest.", "target": f"Child number {i} reads."} for i in range(count)]


class Listener:
    """A server on this machine that hears whatever a process sends, to itself or through it as a proxy, and never answers."""

    def __enter__(self):
        self.heard: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.close()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                connection.settimeout(1)
                with connection, contextlib.suppress(OSError):
                    self.heard.append(connection.recv(200))

    def environment(self) -> dict[str, str]:
        """The environment of a process that may go online, and whose every request would come here."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_", "DISABLE_"))}
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), self.url)
        return own | proxies | {name.lower(): url for name, url in proxies.items()} | {"NO_PROXY": "", "no_proxy": ""}


def import_all() -> None:
    """Imports what a command that trains imports."""
    for name in ("model.embedded", "model.pretrain", "stages.answers", "stages.attempt", "stages.evaluate"):
        importlib.import_module(f"rlrecipes.{name}")
    for name in ("ppo", "reward", "sft"):
        importlib.import_module(f"rlrecipes.stages.{name}")


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    """The libraries are loaded, and the garbage collector leaves their objects alone: each stage collects several times."""
    import_all()
    gc.collect()
    gc.freeze()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub's cache; nothing may go to the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: pytest.fail("it asked the network"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def session_home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_rows(home / "pairs.jsonl", sentences(60))
    return home


@pytest.fixture
def home(session_home, monkeypatch) -> Iterator[Path]:
    """The working directory of every test that trains: all of them share one embedded base, and a file of one name."""
    monkeypatch.chdir(session_home)
    before = {path: path.read_bytes() for path in session_home.iterdir() if path.is_file()}
    yield session_home
    changed = [path.name for path, content in before.items() if not path.exists() or path.read_bytes() != content]
    assert not changed, f"this test wrote over {changed}, which another one reads: give its file a name of its own"


@pytest.fixture(scope="session")
def finished(session_home) -> Path:
    """`runs/t/translation`, all stages done on a file of one's own. Nobody may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(session_home)
        assert main(["run", "translation", "--run", "t", "--data", "pairs.jsonl", *SMALLEST]) == 0
    return session_home / "runs" / "t" / "translation"


@pytest.fixture(scope="session")
def base(session_home, finished) -> Path:
    """The embedded base that `finished` stands on; other tests may have made bases of their own beside it."""
    adapter = json.loads((finished / "sft" / "adapter" / "adapter_config.json").read_text())
    return session_home / adapter["base_model_name_or_path"]


@pytest.fixture(scope="session")
def apart(finished) -> Path:
    """`runs/apart/translation`: like `finished`, with adapters that say quite different things. Nobody may change it."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = finished.parent.parent / "apart" / "translation"
    shutil.copytree(finished, folder)
    for seed, stage in enumerate(("sft", "ppo")):
        path = folder / stage / "adapter" / "adapter_model.safetensors"
        torch.manual_seed(seed)
        weights = {k: v.normal_(std=0.3) if "lora_B" in k else v for k, v in load_file(path).items()}
        save_file(weights, path, {"format": "pt"})
        resealed(folder / stage)
    return folder


@dataclass(frozen=True)
class Checkpoint:
    """A random Llama on disk, and what the stages before PPO would have left behind."""

    model: Path
    sft: Path
    """A run's sft stage: `adapter/`."""
    reward: Path
    """A run's reward stage: `adapter/` and `scale.json`."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Checkpoint:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlrecipes.model.adapters import add_lora
    from rlrecipes.model.loading import load_causal, load_scorer
    from rlrecipes.model.tokens import load_tokenizer
    from rlrecipes.profile import LoraSettings, ModelSettings

    folder = tmp_path_factory.mktemp("checkpoint")
    made = Checkpoint(folder / "model", folder / "sft", folder / "reward")
    tiny_tokenizer().save_pretrained(made.model)
    tokenizer = load_tokenizer(made.model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(made.model)
    plain = ModelSettings(quantization="none")
    for load, stage, task in ((load_causal, made.sft, "CAUSAL_LM"), (load_scorer, made.reward, "SEQ_CLS")):
        model = add_lora(load(str(made.model), plain, tokenizer), LoraSettings(r=4, lora_dropout=0.5), task)
        scatter(model, "default")
        model.save_pretrained(stage / "adapter")
    (made.reward / "scale.json").write_text('{"mean": 0.25, "std": 0.5}', encoding="utf-8")
    return made


def changed(path: Path, **values) -> None:
    """Sets keys of a JSON file; a stage's record gets the checksums that it would have had then."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    if path.name == "done.json":
        resealed(path.parent)


def resealed(stage: Path) -> None:
    """Makes a stage whole again whose files a test has changed."""
    record = json.loads((stage / "done.json").read_text(encoding="utf-8"))
    if record.pop("sha256", None):
        files = [stage / name for name in record["files"] if (stage / name).is_file()]
        write_json(stage / "done.json", sealed(record, stage, files))


def scatter(model, role: str, size: float = 0.1) -> None:
    """Random numbers in the half of an adapter that starts at 0, so that it does something."""
    import torch

    for name, parameter in model.named_parameters():
        if "lora_B" in name and f".{role}." in name:
            torch.nn.init.normal_(parameter.data, std=size)


def tiny_tokenizer(**special):
    """Every byte is a token; `special` replaces the special tokens and the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "<end>", "<user>", "<assistant>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    template = (
        "{% for m in messages %}<user>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    usual = {"tokenizer_object": bpe, "pad_token": "<pad>", "eos_token": "<end>", "chat_template": template}
    return PreTrainedTokenizerFast(additional_special_tokens=["<user>", "<assistant>"], **(usual | special))
