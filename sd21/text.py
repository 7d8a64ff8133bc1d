"""Text: the "text input c" of the paper (Eq. 5), read as SD2.1 reads it: CLIP's byte-pair tokens and text transformer.

in       prompts, list[str]
out      Tokenizer: ids [b, 77];  TextEncoder: ids [b, 77] -> [b, 77, d], a vector for each token, d = 1024 for SD2.1
defines  with_fps; Tokenizer; learn_merges and save_merges, for a small vocabulary like the toy model's; TextEncoder

An attribute's name is its tensor's name in SD2.1's `text_encoder/` folder; arguments are the keys of its config.json.

our reading
      - The paper is silent on text, so everything is SD2.1's. SD2.1 was trained on open_clip's tokens, and this file
        follows open_clip where other ports differ: html entities are resolved, ids after the end are 0, and the
        prompt's own `!` stays 256. One step is left out: the package ftfy, which repairs broken encodings (curly quotes
        become straight, full-width letters narrow). A prompt with such characters gives other ids here.
"""

import html
import re
import unicodedata
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sd21.files import atomic_write

LENGTH = 77                                         # of every row of ids: start, at most 75, end
END = "</w>"                                        # marks a symbol that ends a word
START, STOP = "<start_of_text>", "<end_of_text>"    # vocab.json: <|startoftext|>, <|endoftext|>

# Symbols are strings, so each of the 256 bytes needs a visible character: its own if it has one, otherwise one from
# chr(256) on. The order of SYMBOL is the order of the ids.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
UNPRINTABLE = [byte for byte in range(256) if byte not in PRINTABLE]
SYMBOL = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(UNPRINTABLE)}
BYTE = {symbol: byte for byte, symbol in SYMBOL.items()}


def with_fps(caption, fps):
    """The caption that tells temporal super-resolution its frame rate, as CogVideo does (Hong et al. 2022): "8 fps, a
    red circle swinging". A pendulum seen twice at the same place has swung there and back, or has hardly moved."""
    return f"{fps:g} fps, {caption}"


# ---- text -> words -> symbols ----

def clean(text):
    """Resolves entities twice (captions from the web are often escaped twice); single spaces, lower case."""
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


FIXED = re.compile(f"{START}|{STOP}|'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)


def split_words(text):
    """Cleaned text -> words: a match of FIXED, a run of letters, ONE digit, or a run of other characters but spaces."""
    def kind(char):                                 # Unicode's L.: é, 猫, even 五; its N.: 7, ½, Ⅷ
        group = unicodedata.category(char)[0]
        return "space" if char.isspace() else group if group in "LN" else "other"

    words, start = [], 0
    while start < len(text):
        first, fixed = kind(text[start]), FIXED.match(text, start)
        end = fixed.end() if fixed else start + 1
        while not fixed and first != "N" and end < len(text) and kind(text[end]) == first:
            end += 1
        if first != "space":
            words.append(text[start:end])
        start = end
    return words


def spell(word):
    """'cat' -> ['c', 'a', 't</w>'], one symbol for each byte of its UTF-8."""
    symbols = [SYMBOL[byte] for byte in word.encode("utf-8", "replace")]
    return symbols[:-1] + [symbols[-1] + END]


def merge(symbols, pair):
    """Joins every occurrence of the pair, from the left: (a, a) turns a a a into aa a."""
    merged = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def learn_merges(texts, count):
    """Byte-pair learning: joins the most frequent pair, `count` times; ties: the alphabetically first pair. Returns the
    pairs in order, fewer than `count` if every word has become one symbol."""
    frequency = Counter(word for text in texts for word in split_words(clean(text)))
    spelled = {word: spell(word) for word in frequency}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, symbols in spelled.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += frequency[word]
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        spelled = {word: merge(symbols, merges[-1]) for word, symbols in spelled.items()}
    return merges


def save_merges(merges, path):
    """Writes merges.txt for Tokenizer.load: a header, then one pair a line, in the order of learning. Atomic."""
    with atomic_write(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


class Tokenizer:
    """Prompts -> ids. The vocabulary follows from the merges, in this order: 256 bytes, 256 bytes that end a word, one
    symbol for each merge, start, end. SD2.1 has 48,894 merges: start is 49406, end 49407, and 0 is a `!` in a word."""

    def __init__(self, merges):
        self.symbols = [*SYMBOL.values(), *(symbol + END for symbol in SYMBOL.values())]
        self.rank, known = {}, set(self.symbols)
        for pair in map(tuple, merges):
            joined = "".join(pair)
            if len(pair) != 2 or not known.issuperset(pair) or joined in known:
                raise ValueError(f"merge {len(self.rank) + 1}, {' '.join(pair)!r}, does not join two earlier symbols "
                                 "to a new one")
            self.rank[pair] = len(self.rank)
            self.symbols.append(joined)
            known.add(joined)
        self.symbols += [START, STOP]
        self.vocab_size = len(self.symbols)
        self.start, self.stop = self.vocab_size - 2, self.vocab_size - 1
        self.id = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.cache = {START: [self.start], STOP: [self.stop]}

    @classmethod
    def load(cls, path):
        """path: merges.txt, the folder that holds it, or that folder's parent. Raises FileNotFoundError, ValueError."""
        path = Path(path)
        files = [path, path / "merges.txt", path / "tokenizer" / "merges.txt"]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{path}: no merges.txt there, nor in tokenizer/; "
                                    "copy it from the tokenizer/ folder that came with the model")
        try:
            header, *lines = file.read_text(encoding="utf-8").split("\n")
            if not header.startswith("#version"):
                raise ValueError("its first line does not begin with #version")
            return cls(line.split() for line in lines if line.strip())
        except ValueError as error:                 # includes UnicodeDecodeError
            raise ValueError(f"{file}: not a merges.txt ({error}); "
                             "copy it again from the tokenizer/ folder that came with the model") from None

    def bpe(self, word):
        """A word's ids: joins the pair that was learned first, again and again, until no known pair is left."""
        if word not in self.cache:
            symbols, never = spell(word), len(self.rank)
            while len(symbols) > 1:
                pair = min(zip(symbols, symbols[1:]), key=lambda pair: self.rank.get(pair, never))
                if pair not in self.rank:
                    break
                symbols = merge(symbols, pair)
            self.cache[word] = [self.id[symbol] for symbol in symbols]
        return self.cache[word]

    def encode(self, text):
        """The ids of one prompt, of any number, without start and end."""
        return [i for word in split_words(clean(text)) for i in self.bpe(word)]

    def decode(self, ids):
        """Ids (a list or a row of them) -> text, with a space after each word. Stops at the end id; omits start."""
        text = bytearray()
        for i in map(int, ids):
            if i == self.stop:
                break
            if i != self.start:
                text += bytes(BYTE[char] for char in self.symbols[i].removesuffix(END))
                text += b" " if self.symbols[i].endswith(END) else b""
        return text.decode("utf-8", "replace").strip()

    def cut(self, text):
        """The end of the prompt that exceeds 75 ids, from the first word that loses any; '' if all fits."""
        rest, used = clean(text), 0
        for word in split_words(rest):
            used += len(self.bpe(word))
            if used > LENGTH - 2:
                return rest
            rest = rest[len(word):].lstrip()
        return ""

    def __call__(self, texts):
        """Prompts, or a single one -> ids [b, 77]: start, at most 75 ids, end, zeros."""
        texts = [texts] if isinstance(texts, str) else list(texts)      # otherwise a str gives one row for each letter
        rows = torch.zeros(len(texts), LENGTH, dtype=torch.long)
        for row, text in zip(rows, texts):
            ids = [self.start, *self.encode(text)[:LENGTH - 2], self.stop]
            row[:len(ids)] = torch.tensor(ids)
        return rows


# ---- ids -> vectors ----

class SelfAttention(nn.Module):
    """Each token attends to itself and to those before it. x [b, l, d]."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(d, d)
        self.k_proj = nn.Linear(d, d)
        self.v_proj = nn.Linear(d, d)
        self.out_proj = nn.Linear(d, d)

    def forward(self, x):
        b, l, d = x.shape
        q, k, v = (to(x).view(b, l, self.heads, d // self.heads).transpose(1, 2)        # [b, heads, l, d / heads]
                   for to in (self.q_proj, self.k_proj, self.v_proj))
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(x.transpose(1, 2).reshape(b, l, d))


class Layer(nn.Module):
    """Attention, then two linear layers with an exact GELU between them. Each has a norm before it and a skip."""

    def __init__(self, d, d_ff, heads, eps):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(d, eps=eps)
        self.self_attn = SelfAttention(d, heads)
        self.layer_norm2 = nn.LayerNorm(d, eps=eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, d_ff), "fc2": nn.Linear(d_ff, d)})

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x))))


class TextEncoder(nn.Module):
    """The defaults are SD2.1's config.json: 340,387,840 parameters. 23 layers, since SD2.1 takes the last but one of
    OpenCLIP-H's 24, through the final norm. The zeros after the end are not masked: SD2.1 attends to them too."""

    def __init__(self, vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                 num_attention_heads=16, max_position_embeddings=LENGTH, layer_norm_eps=1e-5):
        super().__init__()

        def embedding(rows, bound):
            return nn.Embedding.from_pretrained(torch.empty(rows, hidden_size).uniform_(-bound, bound), freeze=False)

        # The toy model learns from stills, in which "left" and "right" look alike. Nothing in the data separates such
        # words, so they stay as far apart as they start: 0.5, not CLIP's 0.04.
        self.text_model = nn.ModuleDict({
            "embeddings": nn.ModuleDict({
                "token_embedding": embedding(vocab_size, 0.5),
                "position_embedding": embedding(max_position_embeddings, 0.02)}),
            "encoder": nn.ModuleDict({"layers": nn.ModuleList([
                Layer(hidden_size, intermediate_size, num_attention_heads, layer_norm_eps)
                for _ in range(num_hidden_layers)])}),
            "final_layer_norm": nn.LayerNorm(hidden_size, eps=layer_norm_eps)})

    def forward(self, ids):
        embeddings, encoder = self.text_model["embeddings"], self.text_model["encoder"]
        l = ids.shape[1]
        x = embeddings["token_embedding"](ids) + embeddings["position_embedding"].weight[:l]        # [b, l, d]
        for layer in encoder["layers"]:
            x = layer(x)
        return self.text_model["final_layer_norm"](x)
