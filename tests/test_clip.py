"""Exercises for clip.py. The golden ids are open_clip's, the golden vectors those of the published text encoder."""
import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import clip

REFERENCE = Path(__file__).parent / "reference"
TINY = dict(vocab_size=520, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3)


# ---- the tokenizer ----

def clip_tokenizer():
    """CLIP's own tokenizer, of whose 48,894 merges only those that the golden prompts use are at hand.

    In place of each other one stands a pair that cannot occur: a symbol that ends a word, followed by anything."""
    lines = (REFERENCE / "clip_merges_used.txt").read_text(encoding="utf-8").splitlines()
    used = {int(rank): (a, b) for rank, a, b in (line.split(" ") for line in lines if line[0] != "#")}
    one = list(clip.SYMBOL.values())
    never = product([symbol + clip.END for symbol in one], one)
    return clip.Tokenizer([used.get(rank) or next(never) for rank in range(48_894)])


def test_it_gives_the_ids_that_sd21_was_trained_on():
    """Accents, emoji, five scripts, fractions, contractions, entities, long prompts: is any id not open_clip's?"""
    tokenizer = clip_tokenizer()
    cases = json.loads((REFERENCE / "tokens.json").read_text(encoding="utf-8"))["cases"]
    cases = [case for case in cases if case["same_without_ftfy"]]
    assert len(cases) == 71 and tokenizer.vocab_size == 49_408
    assert [case["text"] for case in cases if tokenizer.encode(case["text"]) != case["bpe"]] == []
    assert [case["text"] for case in cases if tokenizer([case["text"]])[0].tolist() != case["ids"]] == []
    # breaks with one html.unescape, with numbers joined, without lower(), with \w for letters


def test_a_vocabulary_follows_from_the_merges():
    """No vocab.json is read. With two merges, what are the ids of `!`, of `cat`, of start and end?"""
    tokenizer = clip.Tokenizer([("c", "a"), ("ca", "t</w>")])
    assert tokenizer.encode("cat") == [513]                         # 512 + 1: the second merge
    assert tokenizer.encode("!") == [256] and tokenizer.encode("!!") == [0, 256]     # inside a word, ending a word
    assert tokenizer(["cat!"])[0].tolist() == [514, 513, 256, 515] + [0] * 73       # breaks if padded with 515
    assert torch.equal(tokenizer("cat!"), tokenizer(["cat!"]))      # a lone string is a batch of one, not of letters


def test_the_pair_learned_first_is_joined_first():
    """a b c with the merges (b, c), then (a, b): two ways to go on, which is taken? And in a a a?"""
    tokenizer = clip.Tokenizer([("b", "c</w>"), ("a", "b"), ("a", "a")])
    assert tokenizer.encode("abc") == [64, 512]                     # a, bc</w>; breaks with max() for min()
    assert tokenizer.encode("aaa") == [514, 64 + 256]               # aa, a</w>


def test_merges_are_learned_by_counting():
    """low low low lower lowest, by hand: l o five times, then lo w</w> three times, then a tie at two. Then ones."""
    texts = ["Low low LOW", "lower", "lowest"]
    expected = [("l", "o"), ("lo", "w</w>"), ("lo", "w"), ("low", "e"),
                ("lowe", "r</w>"), ("lowe", "s"), ("lowes", "t</w>")]
    assert clip.learn_merges(texts, 6) == expected[:6]              # breaks if a word counts once: (lo, w) is second
    assert clip.learn_merges(texts[::-1], 99) == expected           # in any order; and no more than there is
    tokenizer = clip.Tokenizer(expected)
    assert [tokenizer.encode(word) for word in ("low", "lower", "lowest")] == [[513], [516], [518]]


def test_a_word_is_letters_or_one_number_or_neither():
    """Where are the cuts? Unicode's categories decide: 五 is a letter, though it means five; ½ is a number."""
    cuts = {"it's 2024": ["it", "'s", "2", "0", "2", "4"], "五½é": ["五", "½", "é"], "a\u0301": ["a", "\u0301"],
            "\"'s": ["\"'", "s"], "x_1!?": ["x", "_", "1", "!?"], "<|endoftext|>": ["<|", "endoftext", "|>"]}
    assert {text: clip.split_words(text) for text in cuts} == cuts  # breaks with isalnum() for letters: ½ passes it
    tokenizer = clip.Tokenizer([])
    assert tokenizer.encode("<END_of_text>") == [tokenizer.stop]    # open_clip's own spelling is the token itself


def test_a_long_prompt_says_what_was_cut():
    """75 ids fit. One id a letter here: what is left of 70 letters and two words of 4?"""
    tokenizer = clip.Tokenizer([])
    prompt = "x" * 70 + " Left  BEHIND"                             # 70 + 4 + 6 ids
    ids = tokenizer([prompt])[0]
    assert ids[0] == tokenizer.start and ids[76] == tokenizer.stop and ids[75] == tokenizer.encode("b b")[0] - 256
    assert tokenizer.cut(prompt) == "behind"                        # cut within: the whole word is named
    assert tokenizer.cut("x" * 75) == "" and tokenizer.cut("x" * 75 + " y") == "y"       # breaks with 77 for 75
    assert tokenizer.cut("") == ""


def test_decode_turns_ids_back():
    """Ids -> bytes -> text: is anything lost but capitals and spacing?"""
    tokenizer = clip.Tokenizer(clip.learn_merges(["naïve 猫 cat 🐱"], 9))
    assert tokenizer.decode(tokenizer(["A naïve 猫,  cat"])[0]) == "a naïve 猫 , cat"   # start, end, zeros go
    assert tokenizer.decode(tokenizer.encode("🐱 é Ⅷ")) == "🐱 é ⅷ"
    assert tokenizer.encode("\udcff") == tokenizer.encode("?")      # a byte the terminal could not read: no traceback


def test_saved_merges_load_again(tmp_path):
    """merges.txt may be named itself, or its folder, or the model folder around that. The same tokenizer each time?"""
    merges = clip.learn_merges(["a red circle moving left", "a # sign é"], 12)
    (tmp_path / "tokenizer").mkdir()
    clip.save_merges(merges, tmp_path / "tokenizer" / "merges.txt")
    for path in (tmp_path, tmp_path / "tokenizer", str(tmp_path / "tokenizer" / "merges.txt")):
        assert list(clip.Tokenizer.load(path).rank) == merges
    assert [file.name for file in (tmp_path / "tokenizer").iterdir()] == ["merges.txt"]


@pytest.mark.parametrize("damage", [
    b"", b"a b\n", b"#version: 0.2\na\n", b"#version: 0.2\na b c\n", b"#version: 0.2\na b\na b\n",
    b"#version: 0.2\nth e\n", b"\x1f\x8b\x08\xff", b'{"a": 1}'])
def test_a_damaged_merges_file_is_refused_in_one_line(tmp_path, damage):
    """Empty, no header, one symbol, three, a pair twice, a symbol never made, not text, another file. Is one let in?"""
    (tmp_path / "merges.txt").write_bytes(damage)
    with pytest.raises(ValueError, match="merges.txt: not a merges.txt .*; copy it again") as caught:
        clip.Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)                            # breaks without the check of known symbols


def test_a_missing_merges_file_says_where_it_was_looked_for(tmp_path):
    """A folder without a tokenizer, a folder that is not there: one line that names it?"""
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"^{path}: no merges.txt"):
            clip.Tokenizer.load(path)


# ---- the text encoder ----

def golden(scale=1.0):
    sidecar = json.loads((REFERENCE / "text_tiny.json").read_text())
    keys = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
    model = clip.TextEncoder(**{key: sidecar["config"][key] for key in keys})       # the eps is SD2.1's, the default
    weights = load_file(REFERENCE / "text_tiny.weights.safetensors")
    model.load_state_dict({k: w.float() * (1 if "norm" in k else scale) for k, w in weights.items()}, strict=True)
    return model.eval(), load_file(REFERENCE / "text_tiny.io.safetensors"), sidecar


def error(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("run", ["run0", "run1"])                   # 77 ids, and a row of only 20
def test_it_computes_what_the_published_text_encoder_computes(run):
    """Random weights: which layer is the first to differ from the published one?"""
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
    """eps is 1e-5. Shrink the weights until the variances are no larger: would 1e-6 show?"""
    _, io, sidecar = golden()
    model, *_ = golden(sidecar["scaled_weights"]["factor"])
    assert error(model(io["run0/ids"]), io["scaled/last_hidden_state"]) < sidecar["tolerance"]["scaled"]
    # breaks with eps=1e-6


def test_every_tensor_has_the_name_and_shape_of_the_published_file():
    """SD2.1's text_encoder/ folder holds 372 tensors (and position_ids, which nobody needs). These and no others?"""
    with torch.device("meta"):
        model = clip.TextEncoder()
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == json.loads((REFERENCE / "sd21_text.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == 340_387_840        # breaks with CLIP's own 24 layers


@torch.no_grad()
def test_a_token_sees_only_those_before_it():
    """Change token 5 of 77. Which outputs move? And does the same call twice give the same?"""
    torch.manual_seed(0)
    model = clip.TextEncoder(**TINY).double().eval()
    ids = torch.randint(0, 520, (2, 77))
    other = ids.clone()
    other[:, 5] = (ids[:, 5] + 1) % 520
    before, after = model(ids), model(other)
    assert torch.equal(before, model(ids))
    assert_close(before[:, :5], after[:, :5])                       # breaks with is_causal=False
    assert ((before - after).abs().amax((0, 2))[5:] > 1e-12).all()  # every later one, the padding too
