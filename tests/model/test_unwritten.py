"""Text that a tokenizer cannot write is told before training, and refused where it is most of the text."""

import json
import re
import shutil

import pytest
from conftest import SHORTEST, main, sentences, tiny_tokenizer, write_rows

from rlrecipes.errors import UserError
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.model.unwritten import check_written, unwritten, unwritten_note
from rlrecipes.recipe import Comparison, Data, Example, Message, Rating, Split, user


def letters(unknown=False, normalizer=None):
    """A tokenizer of the printable characters of ASCII, one by one, without bytes for others."""
    from tokenizers import Tokenizer, decoders, models

    special = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>"]
    vocab = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127))])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>" if unknown else None))
    made.decoder = decoders.Fuse()
    if normalizer is not None:
        made.normalizer = normalizer
    return tiny_tokenizer(tokenizer_object=made, **({"unk_token": "<unk>"} if unknown else {}))


@pytest.fixture
def load(tmp_path):
    def saved(tokenizer):
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        return load_tokenizer(tmp_path / "tokenizer")

    return saved


def of(*answers, prompt="Hi"):
    """Data with a demonstration of each answer."""
    return Data("rows", Split(demonstrations=[Example(user(prompt), (answer,)) for answer in answers]), Split())


@pytest.mark.parametrize("unknown", [True, False])
def test_rows_that_lose_a_character_are_counted_by_kind_on_both_sides(load, unknown):
    good, bad = user("Hi"), user("Hi 子")
    train = Split(
        demonstrations=[Example(good, ("a", "子")), Example(good, ("子子",)), Example(bad, ("a",))],
        prompts=[Example(good, ("子",))],
        comparisons=[Comparison(good, "a", "第"), Comparison(good, "a", "b")],
    )
    held_out = Split(prompts=[Example(bad, ("a",))], ratings=[Rating(good, "子", 1.0)])
    found = unwritten(load(letters(unknown)), Data("rows", train, held_out))
    assert found.rows == {"demonstrations": 2, "comparisons": 1, "prompts": 1, "ratings": 1}
    assert found.read == {"demonstrations": 3, "comparisons": 2, "prompts": 2, "ratings": 1}
    assert found.characters == "子第"
    assert "such as '子第', and they are lost in 2 of 3 demonstrations, 1 of 2 prompts" in unwritten_note(found)


def test_bytes_write_everything_and_special_tokens_that_a_text_spells(load):
    found = unwritten(load(tiny_tokenizer()), of("第1个孩子在读书。", "<end>", "a\n\nb", "👩‍🚀 é", ""))
    assert (found.rows, found.much) == ({}, 0)


def test_what_a_normaliser_changes_on_purpose_is_not_lost(load):
    from tokenizers import normalizers

    changing = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Replace("\n", " ")]
    )
    texts = (" The CAT\nsat ", "ﬁne ①", "a\u00a0b", "wide Ａ")
    assert unwritten(load(letters(normalizer=changing)), of(*texts)).rows == {}
    assert unwritten(load(letters()), of(*texts)).rows == {"demonstrations": 2}


def test_data_of_which_most_rows_lose_much_are_refused(load):
    tokenizer = load(letters())
    check_written(unwritten(tokenizer, of("孩子在读", "It is.", prompt="Hi, you")))
    check_written(unwritten(tokenizer, of("It is – as I said before.", "It is – so.", prompt="What is it now, then?")))
    with pytest.raises(
        UserError, match=r"such as '孩子在': 2 of 3 rows lose more than 10% of their text; name a model"
    ):
        check_written(unwritten(tokenizer, of("孩子", "孩子在", "It is.")))
    check_written(unwritten(tokenizer, Data("none", Split(), Split())))


def test_no_more_rows_of_a_kind_are_read_than_needed(load):
    found = unwritten(load(letters()), of(*["Yes.", "孩"] * 300))
    assert found.read == {"demonstrations": 200}
    assert 0 < found.rows["demonstrations"] < 200


def test_a_turn_that_the_template_leaves_out_of_any_row_is_told_before_training(load):
    tokenizer = load(tiny_tokenizer(chat_template="{{ messages[0].content }}<assistant>"))
    chat = (*user("Hi"), Message("assistant", "Hello"), *user("Bye"))
    unwritten(tokenizer, of("It is."))
    with pytest.raises(UserError, match="without the text of turn 2"):
        unwritten(tokenizer, Data("rows", Split(), Split(prompts=[Example(chat, ("Bye.",))])))


@pytest.fixture
def lacking(checkpoint, tmp_path):
    """The tiny checkpoint with a tokenizer of ASCII."""
    folder = shutil.copytree(checkpoint.model, tmp_path / "lacking")
    letters().save_pretrained(folder)
    return str(folder)


def test_show_and_the_console_tell_it_and_the_record_keeps_it(home, lacking, tmp_path, capsys):
    rows = [{**row, "target": f"{row['target']}{'子' if i % 3 == 0 else ''}"} for i, row in enumerate(sentences(60))]
    data = str(write_rows(tmp_path / "some.jsonl", rows))
    assert main(["show", "translation", "--data", data, "--model", lacking]) == 0
    told = r"the tokenizer cannot write characters such as '子', and they are lost in \d+ of \d+ demonstrations"
    assert re.search(rf"note: {told}", capsys.readouterr().out)
    assert main(["sft", "translation", "--run", "lossy", "--data", data, "--model", lacking, *SHORTEST]) == 0
    assert re.search(rf"  {told}", capsys.readouterr().out)
    record = json.loads((home / "runs" / "lossy" / "translation" / "sft" / "done.json").read_text(encoding="utf-8"))
    assert record["lost_characters"]["characters"] == "子"


def test_text_that_is_lost_altogether_is_refused_in_one_line(home, lacking, tmp_path, capsys):
    rows = [{"source": f"第{i}个孩子在读书。", "target": f"孩子{i}号在读。"} for i in range(60)]
    data = str(write_rows(tmp_path / "chinese.jsonl", rows))
    assert main(["sft", "translation", "--run", "unwritable", "--data", data, "--model", lacking, *SHORTEST]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "rows lose more than 10% of their text; name a model that reads this language" in error
    assert not (home / "runs" / "unwritable" / "translation" / "sft").exists()
