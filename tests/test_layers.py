"""Imports point downwards, and what must be quick imports nothing heavy."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = (
    {
        *("errors", "text", "metrics", "recipe", "profile", "run", "versions", "rewards", "files", "formats", "data"),
        *("job", "show", "console", "interrupts", "allocator", "decoder", "plan"),
        *("access", "hub", "encoding", "light_tokenizer", "ending", "tensor_files", "embedded"),
        *("trained", "card", "upload"),
        *("agreement", "multitask", "reward_source"),
    },
    {
        *(
            "models",
            "sampling",
            "likelihood",
            "rollout",
            "base",
            "tracking",
            "checkpoint",
            "training",
            "memory",
            "checks",
        ),
        *("ppo_trainer", "reward_model"),
    },
    {"stages", "stages.sft", "stages.reward", "stages.ppo", "stages.evaluate", "stages.report", "chat", "export"},
    {"pipeline", "__main__"},
)
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "wandb", "bitsandbytes", "accelerate", "safetensors"}

FILES = {
    ".".join(path.relative_to(ROOT / "rlrecipes").with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "rlrecipes").rglob("*.py"))
    if path != ROOT / "rlrecipes" / "__init__.py"
}
RECIPE_FILES = sorted((ROOT / "recipes").rglob("*.py"))
QUICK = [path for name, path in FILES.items() if LAYER.get(name) == 0] + RECIPE_FILES
QUICK += [FILES["pipeline"], FILES["__main__"], FILES["stages.report"]]


def imported(tree: ast.AST) -> set[str]:
    """Full names of all imported modules and names, wherever in the file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def at_once(tree: ast.Module) -> set[str]:
    """What is imported when the module is: not what functions import, nor what only the type checker sees."""
    names: set[str] = set()
    for node in tree.body:
        checked = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not checked and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            names |= imported(node)
    return names


def own(names: set[str]) -> set[str]:
    """Those that are modules of the package, by their name within it."""
    inner = {name.removeprefix("rlrecipes.") for name in names if name.startswith("rlrecipes.")}
    return {name for name in inner if name in LAYER}


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_every_module_has_its_layer():
    assert set(FILES) == set(LAYER)


@pytest.mark.parametrize("module", FILES)
def test_no_module_imports_from_a_higher_layer(module):
    higher = {name for name in own(imported(parse(FILES[module]))) if LAYER[name] > LAYER[module]}
    assert not higher


@pytest.mark.parametrize("stage", sorted(LAYERS[2] - {"stages"}))
def test_stages_never_import_each_other(stage):
    assert not own(imported(parse(FILES[stage]))) & LAYERS[2]


@pytest.mark.parametrize("path", QUICK, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_must_be_quick_imports_nothing_heavy(path):
    assert not roots(at_once(parse(path))) & HEAVY
    layers = {LAYER[name] for name in own(at_once(parse(path)))}
    assert 1 not in layers, "layer 1 brings torch"


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_import_the_lowest_layer_alone_and_nothing_heavy_anywhere(path):
    names = imported(parse(path))
    assert not roots(names) & HEAVY
    assert {LAYER[name] for name in own(names)} <= {0}


def test_recipes_do_not_import_each_other():
    for path in RECIPE_FILES:
        others = {name for name in imported(parse(path)) if name.startswith("recipes.")}
        assert all(name.split(".")[1] == path.parent.name for name in others), path


def test_one_file_imports_trls_experimental_ppo():
    using = [
        name
        for name, path in FILES.items()
        if any(imported_name.startswith("trl.experimental") for imported_name in imported(parse(path)))
    ]
    assert using == ["ppo_trainer"]
