"""Exercises for sd21/text.py. The golden ids are open_clip's, the golden vectors the published text encoder's."""
import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from sd21.files import write_json
from sd21.text import END, SYMBOL, TextEncoder, Tokenizer, learn_merges, save_merges, split_words, with_fps

REFERENCE = Path(__file__).parent / "reference"
TINY = dict(vocab_size=520, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3)


# ---- the tokenizer ----

def clip_tokenizer():
    """CLIP's own tokenizer, with only those of its 48,894 merges that the golden prompts use.

    Each of the others is replaced by a pair that cannot occur: a symbol that ends a word, followed by any symbol."""
    lines = (REFERENCE / "clip_merges_used.txt").read_text(encoding="utf-8").splitlines()
    used = {int(rank): (a, b) for rank, a, b in (line.split(" ") for line in lines if line[0] != "#")}
    one = list(SYMBOL.values())
    never = product([symbol + END for symbol in one], one)
    return Tokenizer([used.get(rank) or next(never) for rank in range(48_894)])


def test_the_ids_are_those_that_sd21_was_trained_on():
    """Accents, emoji, five scripts, fractions, contractions, entities, long prompts: does any id differ?"""
    tokenizer = clip_tokenizer()
    cases = json.loads((REFERENCE / "tokens.json").read_text(encoding="utf-8"))["cases"]
    cases = [case for case in cases if case["same_without_ftfy"]]
    assert len(cases) == 71 and tokenizer.vocab_size == 49_408
    assert [case["text"] for case in cases if tokenizer.encode(case["text"]) != case["bpe"]] == []
    assert [case["text"] for case in cases if tokenizer([case["text"]])[0].tolist() != case["ids"]] == []
    # breaks with one html.unescape, with numbers joined, without lower(), with \w for letters


def test_of_what_ftfy_changes_nfc_is_done():
    """An accent after its letter is the same é as the letter with its accent. Which golden prompts still differ?"""
    tokenizer = clip_tokenizer()
    cases = json.loads((REFERENCE / "tokens.json").read_text(encoding="utf-8"))["cases"]
    left = [case["text"] for case in cases if tokenizer.encode(case["text"]) != case["bpe"]]
    ligatures, curly, wide, mojibake = left                         # breaks without NFC: a fifth differs
    assert "\ufb01" in ligatures and "\u201c" in curly and "\uff46" in wide and "\xc3\xa9" in mojibake
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\xe9") == tokenizer.encode("cafe&#769;")


def test_the_merges_may_lie_in_tokenizer_json(tmp_path):
    """transformers 5 writes tokenizer.json and no merges.txt. It holds the same pairs; a broken one is one line."""
    pairs, file = [["c", "a"], ["ca", "t</w>"]], tmp_path / "tokenizer" / "tokenizer.json"
    write_json({"model": {"type": "BPE", "merges": pairs}}, file)
    assert Tokenizer.load(tmp_path).encode("cat") == Tokenizer(pairs).encode("cat") == [513]
    for broken in ({}, {"model": 5}, {"model": {"merges": [1]}}, {"model": {"merges": None}}):
        write_json(broken, file)
        with pytest.raises(ValueError, match="tokenizer.json: not a merges.txt"):
            Tokenizer.load(tmp_path)


def test_a_vocabulary_follows_from_the_merges():
    """No vocab.json is read. With two merges, what are the ids of `!`, of `cat`, of start and end?"""
    tokenizer = Tokenizer([("c", "a"), ("ca", "t</w>")])
    assert tokenizer.encode("cat") == [513]                         # 512 + 1: the second merge
    assert tokenizer.encode("!") == [256] and tokenizer.encode("!!") == [0, 256]     # inside a word, ending a word
    assert tokenizer(["cat!"])[0].tolist() == [514, 513, 256, 515] + [0] * 73       # breaks if padded with 515
    assert torch.equal(tokenizer("cat!"), tokenizer(["cat!"]))      # a single string is a batch of one, not of letters


def test_the_pair_learned_first_is_joined_first():
    """a b c with the merges (b, c), then (a, b): which of the two is applied? And what becomes of a a a?"""
    tokenizer = Tokenizer([("b", "c</w>"), ("a", "b"), ("a", "a")])
    assert tokenizer.encode("abc") == [64, 512]                     # a, bc</w>; breaks with max() for min()
    assert tokenizer.encode("aaa") == [514, 64 + 256]               # aa, a</w>


def test_merges_are_learned_by_counting():
    """low low low lower lowest, counted by hand: l o five times, lo w</w> three times, a tie at two, then singles."""
    texts = ["Low low LOW", "lower", "lowest"]
    expected = [("l", "o"), ("lo", "w</w>"), ("lo", "w"), ("low", "e"),
                ("lowe", "r</w>"), ("lowe", "s"), ("lowes", "t</w>")]
    assert learn_merges(texts, 6) == expected[:6]              # breaks if a word counts once: (lo, w) is second
    assert learn_merges(texts[::-1], 99) == expected           # texts in any order; no pair is left
    tokenizer = Tokenizer(expected)
    assert [tokenizer.encode(word) for word in ("low", "lower", "lowest")] == [[513], [516], [518]]


def test_a_word_is_letters_or_one_number_or_neither():
    """Where is the text split? Unicode's categories decide: 五 is a letter, although it means five; ½ is a number."""
    cuts = {"it's 2024": ["it", "'s", "2", "0", "2", "4"], "五½é": ["五", "½", "é"], "a\u0301": ["a", "\u0301"],
            "\"'s": ["\"'", "s"], "x_1!?": ["x", "_", "1", "!?"], "<|endoftext|>": ["<|", "endoftext", "|>"]}
    assert {text: split_words(text) for text in cuts} == cuts  # breaks with isalnum() for letters: ½ passes it
    tokenizer = Tokenizer([])
    assert tokenizer.encode("<END_of_text>") == [tokenizer.stop]    # open_clip's spelling is the token itself


def test_the_end_of_a_long_prompt_is_reported():
    """75 ids fit. Every letter is one id here: what is cut off from 70 letters, "left" and "behind"?"""
    tokenizer = Tokenizer([])
    prompt = "x" * 70 + " Left  BEHIND"                             # 70 + 4 + 6 ids
    ids = tokenizer([prompt])[0]
    assert ids[0] == tokenizer.start and ids[76] == tokenizer.stop and ids[75] == tokenizer.encode("b b")[0] - 256
    assert tokenizer.cut(prompt) == "behind"                        # cut inside a word: all of it is reported
    assert tokenizer.cut("x" * 75) == "" and tokenizer.cut("x" * 75 + " y") == "y"       # breaks with 77 for 75
    assert tokenizer.cut("") == ""
    cat = Tokenizer([("c", "a"), ("ca", "t</w>")])
    assert cat.cut("cat " * 75) == "" and cat.cut("cat " * 76) == "cat"                  # breaks if letters are counted


def test_the_ids_hold_the_whole_text():
    """Ids -> symbols -> bytes -> text: is anything lost except capitals and spacing?"""
    tokenizer = Tokenizer(learn_merges(["naïve 猫 cat 🐱"], 9))
    symbols, byte = list(tokenizer.id), {symbol: byte for byte, symbol in SYMBOL.items()}

    def decode(ids):
        words = "".join(symbols[i] for i in ids).split(END)
        return " ".join(bytes(byte[symbol] for symbol in word).decode() for word in words).strip()
    for text, kept in (("A naïve 猫,  cat", "a naïve 猫 , cat"), ("🐱 é Ⅷ", "🐱 é ⅷ")):
        assert decode(tokenizer.encode(text)) == kept               # breaks if a byte has no symbol of its own
    assert tokenizer.encode("\udcff") == tokenizer.encode("?")      # an undecodable byte: no traceback


def test_saved_merges_load_again(tmp_path):
    """The path may be merges.txt, its folder, or the model folder. Is the tokenizer the same each time?"""
    merges = learn_merges(["a red circle moving left", "a # sign é"], 12)
    (tmp_path / "tokenizer").mkdir()
    save_merges(merges, tmp_path / "tokenizer" / "merges.txt")
    for path in (tmp_path, tmp_path / "tokenizer", str(tmp_path / "tokenizer" / "merges.txt")):
        assert list(Tokenizer.load(path).rank) == merges
    assert [file.name for file in (tmp_path / "tokenizer").iterdir()] == ["merges.txt"]


@pytest.mark.parametrize("damage", [
    b"", b"a b\n", b"#version: 0.2\na\n", b"#version: 0.2\na b c\n", b"#version: 0.2\na b\na b\n",
    b"#version: 0.2\nth e\n", b"\x1f\x8b\x08\xff", b'{"a": 1}'])
def test_a_damaged_merges_file_is_refused_in_one_line(tmp_path, damage):
    """Empty, no header, one symbol, three, a pair twice, an unknown symbol, no text, JSON: is any accepted?"""
    (tmp_path / "merges.txt").write_bytes(damage)
    with pytest.raises(ValueError, match="merges.txt: not a merges.txt .*; copy it again") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)                            # breaks without the check of known symbols


def test_a_missing_merges_file_is_one_line_that_names_the_folder(tmp_path):
    """A folder without a tokenizer, and a folder that does not exist."""
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"^{path}: no merges.txt"):
            Tokenizer.load(path)


def test_saved_merges_have_the_published_files_form(tmp_path):
    """Byte for byte, on every system: a header, a pair a line, no carriage returns."""
    save_merges([("c", "a"), ("ca", "t</w>")], tmp_path / "merges.txt")
    assert (tmp_path / "merges.txt").read_bytes() == b"#version: 0.2\nc a\nca t</w>\n"


def test_a_merge_that_joins_nothing_is_refused_by_its_number():
    """The second of two joins a symbol that nobody has made."""
    with pytest.raises(ValueError, match="merge 2, 'th e'"):
        Tokenizer([("t", "h</w>"), ("th", "e")])


def test_no_prompts_are_a_table_of_no_rows():
    """A batch of nothing still has 77 columns."""
    assert Tokenizer([])([]).shape == (0, 77)


def test_the_caption_begins_with_the_frame_rate():
    """What does the text encoder of temporal super-resolution read, at whole and broken rates?"""
    assert with_fps("a red circle", 8.0) == "8 fps, a red circle"   # breaks with f"{fps}": the model learned "8 fps"
    assert with_fps("a red circle", 7.5) == "7.5 fps, a red circle"


# ---- the text encoder ----

def golden(scale=1.0):
    sidecar = json.loads((REFERENCE / "text_tiny.json").read_text())
    keys = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
    model = TextEncoder(**{key: sidecar["config"][key] for key in keys})       # its eps is the default, SD2.1's
    weights = load_file(REFERENCE / "text_tiny.weights.safetensors")
    model.load_state_dict({k: w.float() * (1 if "norm" in k else scale) for k, w in weights.items()}, strict=True)
    return model.eval(), load_file(REFERENCE / "text_tiny.io.safetensors"), sidecar


def error(output, reference):
    return float((output - reference).abs().max() / reference.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("run", ["run0", "run1"])                   # 77 ids, and a row of only 20
def test_it_computes_what_the_published_text_encoder_computes(run):
    """Random weights: which layer is the first to differ from the published encoder's?"""
    model, io, sidecar = golden()
    layers, seen = model.text_model["encoder"]["layers"], {}
    layers[0].register_forward_pre_hook(lambda m, x: seen.update({"hidden_states.0": x[0]}))
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda m, x, y, key=f"hidden_states.{i + 1}": seen.update({key: y}))
    seen["last_hidden_state"] = model(io[f"{run}/ids"])
    allowed = sidecar["tolerance"]["max_abs_difference_over_max_abs_reference"]
    assert len(seen) == 5
    assert {key: e for key, y in seen.items() if (e := error(y, io[f"{run}/{key}"])) > allowed} == {}
    # breaks with the tanh GELU, with is_causal=False, with q and k exchanged, without the final norm


@torch.no_grad()
def test_shrunken_weights_show_the_eps_of_the_layer_norms():
    """eps is 1e-5. Shrink the weights until the variances are as small: does an eps of 1e-6 show?"""
    _, io, sidecar = golden()
    model, *_ = golden(sidecar["scaled_weights"]["factor"])
    assert error(model(io["run0/ids"]), io["scaled/last_hidden_state"]) < sidecar["tolerance"]["scaled"]
    # breaks with eps=1e-6


def test_every_tensor_has_the_name_and_shape_of_the_published_file():
    """SD2.1's text_encoder/ folder holds 372 tensors, and position_ids. Does the model have these 372 and no others?"""
    with torch.device("meta"):
        model = TextEncoder()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == json.loads((REFERENCE / "sd21_text.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == 340_387_840        # breaks with CLIP's own 24 layers


def test_every_table_of_the_text_encoder_can_learn():
    """nn.Embedding.from_pretrained freezes its table, unless told otherwise. And how far apart do words start?"""
    torch.manual_seed(0)
    model = TextEncoder(**TINY)
    assert all(p.requires_grad for p in model.parameters())
    assert 0.45 < model.text_model["embeddings"]["token_embedding"].weight.abs().max() < 0.5     # breaks: CLIP's 0.04


@torch.no_grad()
def test_a_token_sees_only_those_before_it():
    """Change token 5 of 77: which outputs change? And are two equal calls equal?"""
    torch.manual_seed(0)
    model = TextEncoder(**TINY).double().eval()
    ids = torch.randint(0, 520, (2, 77))
    other = ids.clone()
    other[:, 5] = (ids[:, 5] + 1) % 520
    before, after = model(ids), model(other)
    assert torch.equal(before, model(ids))
    assert_close(before[:, :5], after[:, :5])                       # breaks with is_causal=False
    assert ((before - after).abs().amax((0, 2))[5:] > 1e-12).all()  # all later ones, the padding too


def test_heads_must_divide_the_width_and_positions_reach_77():
    """5 heads of 12 numbers; rows of 77 ids and 70 positions."""
    for wrong in ({"num_attention_heads": 5}, {"max_position_embeddings": 70}):
        with pytest.raises(ValueError, match="want heads that divide hidden_size 12, and 77 or more positions"):
            TextEncoder(**TINY | wrong)


def test_a_tokenizer_names_the_words_that_it_never_learned():
    """Learned from two captions, it knows their words and no others; "ring" is only the end of "string" there."""
    tokenizer = Tokenizer(learn_merges(["a red string", "a blue ball"], 1000))
    assert tokenizer.words() == ["ball", "blue", "red", "string"]            # breaks if ends of words count as words
    assert not [*tokenizer.notes("A red ball")]
    note, = tokenizer.notes("a crimson ring, crimson")
    assert "crimson, ring; it knows ball, blue, red, string" in note         # breaks if crimson is named twice


def test_a_prompt_that_is_cut_off_is_a_note():
    """76 letters: the last does not fit."""
    assert [*Tokenizer([]).notes("x" * 76)][0].endswith("cut off: '" + "x" * 76 + "'")
