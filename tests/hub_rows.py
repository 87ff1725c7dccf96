"""Invented rows in the schemas of the public data sets, and a hub's cache that holds them."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrecipes.data import hub_sets
from rlrecipes.data.load import load
from rlrecipes.recipe import Data, HubSet, load_recipe, recipe_names

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(texts)]


def imdb(i: int) -> dict[str, Any]:
    mood = ("dull", "lovely")[i % 2]
    text = f"Film number {i} is slow.<br /><br />Its last act is {mood} from the first scene to the last. I left."
    return {"text": text, "label": i % 2}


def story(i: int) -> dict[str, Any]:
    return {
        "prompt": f"She opened door {i} and looked.",
        "chosen": " The garden was in bloom.",
        "rejected": " It was bare.",
    }


def tldr(i: int) -> dict[str, Any]:
    prompt = f"SUBREDDIT: r/pets\n\nTITLE: Cat {i}\n\nPOST: My cat sits on my laptop.\n\nTL;DR:"
    return {"prompt": prompt, "completion": f" Cat {i} blocks my laptop."}


def tldr_preference(i: int) -> dict[str, Any]:
    prompt = tldr(i)["prompt"] if i % 5 else f"TITLE: News {i}\n\nArticle text.\n\nTL;DR:"
    return {"prompt": prompt, "chosen": f" Cat {i} blocks my laptop.", "rejected": " I have a cat."}


def wmt14(i: int) -> dict[str, Any]:
    return {"translation": {"de": f"Der Zug {i} hält hier nicht.", "en": f"Train {i} does not stop here."}}


def alma(i: int) -> dict[str, Any]:
    scores = {
        f"{who}_{lang}_{metric}": 0.5
        for who in ("alma", "gpt4", "ref")
        for lang in ("de", "en")
        for metric in ("kiwi", "xcomet", "kiwi_xcomet")
    }
    texts = {
        "de": f"Das Wasser {i} ist kalt.",
        "en": f"Water {i} is cold.",
        "alma_de": f"Kaltes Wasser {i}.",
        "alma_en": f"Cold water {i}.",
        "gpt4_de": f"Kalt ist Wasser {i}.",
        "gpt4_en": f"Water {i} cold is.",
    }
    better = {"ref_de_kiwi_xcomet": 0.9, "gpt4_de_kiwi_xcomet": 0.4}
    way = {"language_pair": "en-de", "required_directions": "de-en" if i % 4 == 3 else ""}
    return {"translation": {"Delta": 0.0, **texts, **scores, **better, **way}}


def wmt24pp(i: int) -> dict[str, Any]:
    return {
        "lp": "en-de_DE",
        "domain": "news",
        "document_id": "d",
        "segment_id": i,
        "is_bad_source": i % 10 == 9,
        "source": f"Bridge {i} opens on Monday.",
        "target": f"Brücke {i} wird am Montag eröffnet.",
        "original_target": f"Brücke {i} öffnet Montag.",
    }


def wmt_da(i: int) -> dict[str, Any]:
    return {
        "lp": ("en-de", "de-en")[i % 2],
        "src": f"Shop {i // 4} is closed.",
        "mt": f"Laden {i // 4} ist {('zu', 'geschlossen')[i // 2 % 2]}.",
        "ref": f"Geschäft {i // 4} ist geschlossen.",
        "score": (-0.4, 0.5)[i // 2 % 2],
        "raw": 83.0,
        "annotators": 2,
        "domain": "news",
        "year": 2020,
    }


def squad(i: int) -> dict[str, Any]:
    context = f"Tower {i} was built in 1901 by the engineer Ada Holm near the Harbour of Old Seaford."
    answers = {"text": ["Ada Holm"], "answer_start": [context.index("Ada")]}
    return {
        "id": str(i),
        "title": "Towers",
        "context": context,
        "question": f"Who built tower {i}?",
        "answers": answers,
    }


def webgpt(i: int) -> dict[str, Any]:
    score = 0.0 if i % 10 == 9 else 0.5
    return {
        "question": {"dataset": "eli5", "id": str(i), "full_text": f"Why is sea {i} salty?"},
        "quotes_0": {"title": ["Seas"], "extract": ["Rivers carry minerals."]},
        "answer_0": "Rivers bring minerals [1]. They stay [1, 2].",
        "tokens_0": {"prefix": [1], "completion": [2]},
        "score_0": -score,
        "quotes_1": {"title": ["Salt"], "extract": ["Water leaves, salt stays."]},
        "answer_1": "Salt stays behind [1].",
        "tokens_1": {"prefix": [1], "completion": [2]},
        "score_1": score,
    }


def shp(i: int) -> dict[str, Any]:
    return {
        "post_id": str(i),
        "domain": "askbaking_train",
        "upvote_ratio": 0.97,
        "history": f"Why is bread {i} flat?",
        "c_root_id_A": "a",
        "c_root_id_B": "b",
        "created_at_utc_A": 1,
        "created_at_utc_B": 2,
        "score_A": 10,
        "score_B": 40,
        "human_ref_A": "Bad luck.",
        "human_ref_B": "Your yeast may be old.",
        "labels": 0,
        "seconds_difference": 1.0,
        "score_ratio": 1.5 if i % 10 == 9 else 4.0,
    }


def ultrafeedback(i: int) -> dict[str, Any]:
    question = f"Name a prime above {i}."
    return {
        "chosen": chat(question, f"{i + 1} may be."),
        "rejected": chat(question, "No."),
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    }


def hh(i: int) -> dict[str, Any]:
    return {
        "prompt": chat(f"Tea {i} or coffee?", "Do you want caffeine?", "No."),
        "chosen": [{"role": "assistant", "content": "Then try a herbal tea."}],
        "rejected": [{"role": "assistant", "content": "Coffee."}],
    }


def helpsteer(i: int) -> dict[str, Any]:
    later = "\n<extra_id_1>Assistant\nFor whom?\n<extra_id_1>User\nFor me." if i // 2 % 2 else ""
    grades = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    return {
        "prompt": f"List fruits, list {i // 2}.{later}",
        "response": ("Apple and pear.", "No.")[i % 2],
        "helpfulness": (4, 1)[i % 2],
        **grades,
    }


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "stanfordnlp/imdb": imdb,
    "trl-lib/lm-human-preferences-sentiment": story,
    "trl-lib/lm-human-preferences-descriptiveness": story,
    "trl-lib/tldr": tldr,
    "trl-lib/tldr-preference": tldr_preference,
    "wmt/wmt14": wmt14,
    "haoranxu/ALMA-R-Preference": alma,
    "google/wmt24pp": wmt24pp,
    "RicardoRei/wmt-da-human-evaluation": wmt_da,
    "rajpurkar/squad": squad,
    "openai/webgpt_comparisons": webgpt,
    "stanfordnlp/SHP": shp,
    "trl-lib/ultrafeedback_binarized": ultrafeedback,
    "trl-lib/hh-rlhf-helpful-base": hh,
    "nvidia/HelpSteer2": helpsteer,
}
ENDING = {"google/wmt24pp": "jsonl", "stanfordnlp/SHP": "jsonl", "nvidia/HelpSteer2": "jsonl"} | {
    "RicardoRei/wmt-da-human-evaluation": "csv"
}
"""How a set is stored where it is not Parquet."""


def write_split(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        from datasets import Dataset

        Dataset.from_list([dict(row) for row in rows]).to_parquet(str(path))


def put_in_cache(cache: Path, hub_set: HubSet, count: int = 40, commit: str = COMMIT, files: int = 1) -> Path:
    """Makes the folder that `hf download` leaves of a set: its train rows are 0 to `count`, others have other numbers."""
    folder = cache / f"datasets--{hub_set.id.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    reference = folder / "refs" / (hub_set.revision or "main")
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    config, ending = hub_set.config or "default", ENDING.get(hub_set.id, "parquet")
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
    for start, split in ((0, hub_set.split), (100_000, hub_set.test)):
        if split is None:
            continue
        card += f"  - split: {split}\n    path: {config}/{split}-*\n"
        for number in range(files):
            rows = [ROWS[hub_set.id](start + number * count + i) for i in range(count)]
            write_split(snapshot / config / f"{split}-{number}.{ending}", rows)
    (snapshot / "README.md").write_text(card + "---\n")
    return snapshot


def loaded(recipe: str, source: str, cache: Path, **options: Any) -> Data:
    """The data that `source` names, whose sets are first put into the hub's cache."""
    for hub_set in hub_sets.chosen_sets(load_recipe(recipe), source):
        put_in_cache(cache, hub_set, **options)
    return load(load_recipe(recipe), source, {}, Path("runs"))


def set_of(id: str) -> HubSet:
    return next(one for name in recipe_names() for one in load_recipe(name).hub if one.id == id)
