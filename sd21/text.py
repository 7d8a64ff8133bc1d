"""Text: the "text input c" of the paper (Eq. 5), read as SD2.1 reads it: CLIP's byte-pair tokens and text transformer.

in       prompts, list[str]
out      Tokenizer: ids [b, 77];  TextEncoder: ids [b, 77] -> [b, 77, d], a vector for each token, d = 1024 for SD2.1
our reading  The paper is silent on text. Where ports of SD2.1's tokenizer differ, this file follows open_clip: html
             entities are resolved, ids after the end are 0, the prompt's own `!` stays 256. Of ftfy only NFC is done
             (e and an accent become é); not curly quotes, full-width letters, ligatures, wrong encodings: other ids.
"""

import html
import re
import unicodedata
from collections import Counter, OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sd21.files import atomic_write, read_json
from sd21.kernels import split_heads

LENGTH = 77                                         # of every row of ids: start, at most 75, end
END = "</w>"                                        # marks a symbol that ends a word
START, STOP = "<start_of_text>", "<end_of_text>"    # vocab.json: <|startoftext|>, <|endoftext|>

# Symbols are strings, so each of the 256 bytes needs a visible character: its own if it has one, otherwise one from
# chr(256) on. The order of SYMBOL is the order of the ids.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
UNPRINTABLE = [byte for byte in range(256) if byte not in PRINTABLE]
SYMBOL = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(UNPRINTABLE)}

# Special words and contractions, runs of letters, runs of all else but spaces. \w is letters, numbers and `_`.
WORD = re.compile(rf"{START}|{STOP}|'s|'t|'re|'ve|'m|'ll|'d|[^\W_]+|(?:[^\w\s]|_)+", re.IGNORECASE)


def with_fps(caption, fps):
    """The caption that tells temporal super-resolution its frame rate, as CogVideo does (Hong et al. 2022): "8 fps, a
    red circle swinging". A pendulum seen twice at the same place has swung there and back, or has hardly moved."""
    return f"{fps:g} fps, {caption}"


def clean(text):
    """Resolves entities twice (captions from the web are often escaped twice); NFC, single spaces, lower case."""
    return " ".join(unicodedata.normalize("NFC", html.unescape(html.unescape(text))).split()).lower()


def split_words(text):
    """Cleaned text -> words. Each digit is its own word, as are ½ and Ⅷ; 五 is a letter: Unicode's categories."""
    return WORD.findall("".join(f" {char} " if unicodedata.category(char)[0] == "N" else char for char in text))


def spell(word):
    """'cat' -> ['c', 'a', 't</w>'], one symbol for each byte of its UTF-8."""
    symbols = [SYMBOL[byte] for byte in word.encode("utf-8", "replace")]
    return symbols[:-1] + [symbols[-1] + END]


def merge(symbols, pair):
    """Joins all such pairs, from the left: (a, a) turns a a a into aa a. As in Sennrich et al. 2016, Algorithm 1."""
    neighbours = rf"(?<!\S){re.escape(' '.join(pair))}(?!\S)"                # spaces or nothing on both sides
    return re.sub(neighbours, lambda match: "".join(pair), " ".join(symbols)).split()


def learn_merges(texts, count):
    """The pairs to join, in order: the most frequent (ties: the first by alphabet), up to `count`, if there are any."""
    frequency = Counter(word for text in texts for word in split_words(clean(text)))
    spelled, merges = {word: spell(word) for word in frequency}, []
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
    with atomic_write(path) as part:
        part.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8", newline="\n")


class Tokenizer:
    """Prompts -> ids. The vocabulary follows from the merges, in this order: 256 bytes, 256 bytes that end a word, one
    symbol for each merge, start, end. SD2.1 has 48,894 merges: start is 49406, end 49407, and 0 is a `!` in a word."""
    def __init__(self, merges):
        symbols = [*SYMBOL.values(), *(symbol + END for symbol in SYMBOL.values())]
        self.rank, self.id = {}, {symbol: i for i, symbol in enumerate(symbols)}
        for pair in map(tuple, merges):
            joined = "".join(pair)
            if len(pair) != 2 or not self.id.keys() >= set(pair) or joined in self.id:
                raise ValueError(f"merge {len(self.rank) + 1}, {' '.join(pair)!r}, does not join two earlier symbols "
                                 "to a new one")
            self.rank[pair], self.id[joined] = len(self.rank), len(self.id)
        self.start, self.stop, self.vocab_size = len(self.id), len(self.id) + 1, len(self.id) + 2
        self.cache = {START: [self.start], STOP: [self.stop]}

    @classmethod
    def load(cls, path):
        """path: merges.txt, the folder that holds it, or that folder's parent. Raises FileNotFoundError, ValueError."""
        files = [Path(path, name) for name in ("", "merges.txt", "tokenizer/merges.txt", "tokenizer/tokenizer.json")]
        file, origin = next(filter(Path.is_file, files), None), "from the tokenizer/ folder that came with the model"
        if file is None:
            raise FileNotFoundError(f"{path}: no merges.txt there, nor in tokenizer/; copy it {origin}")
        try:
            if file.suffix == ".json":              # of transformers 5, which writes no merges.txt
                return cls(read_json(file)["model"]["merges"])
            header, *lines = file.read_text(encoding="utf-8-sig").split("\n")
            if not header.startswith("#version"):
                raise ValueError("its first line does not begin with #version")
            return cls(line.split() for line in lines if line.strip())
        except (ValueError, LookupError, TypeError) as error:           # includes UnicodeDecodeError
            raise ValueError(f"{file}: not a merges.txt ({error}); copy it again {origin}") from None

    def bpe(self, word):
        """A word's ids: joins the pair that was learned first, again and again, until no known pair is left."""
        if word not in self.cache:
            symbols = spell(word)
            while known := self.rank.keys() & zip(symbols, symbols[1:]):
                symbols = merge(symbols, min(known, key=self.rank.get))
            self.cache[word] = [self.id[symbol] for symbol in symbols]
        return self.cache[word]

    def encode(self, text):
        """The ids of one prompt, of any number, without start and end."""
        return [i for word in split_words(clean(text)) for i in self.bpe(word)]

    def cut(self, text):
        """The end of the prompt that exceeds 75 ids, from the first word that loses any; '' if all fits."""
        rest, used = clean(text), 0
        for word in split_words(rest):
            used += len(self.bpe(word))
            if used > LENGTH - 2:
                return rest
            rest = rest[len(word):].lstrip()
        return ""

    def words(self):
        """The words that it learned whole, in alphabetical order: symbols that end a word and no longer one."""
        byte_of = {char: byte for byte, char in SYMBOL.items()}
        ends = {right for _, right in self.rank}
        symbols = [a + b.removesuffix(END) for a, b in self.rank if b.endswith(END) and a + b not in ends]
        return sorted(bytes(byte_of[char] for char in symbol).decode("utf-8", "replace") for symbol in symbols)

    def notes(self, text):
        """Yields what a user should know about a prompt, in lines."""
        if cut := self.cut(text):
            yield f"the prompt is longer than the text encoder reads; cut off: {cut!r}"
        known = self.words() if self.vocab_size < 49_408 else []        # CLIP's knows parts of nearly all words
        new = dict.fromkeys(word for word in split_words(clean(text)) if len(word) > 1 and word not in known)
        if new and known:
            more = f" and {len(known) - 80} more" if len(known) > 80 else ""
            yield f"words that the model's captions never had: {', '.join(new)}; it knows {', '.join(known[:80])}{more}"

    def __call__(self, texts):
        """Prompts, or a single one -> ids [b, 77]: start, at most 75 ids, end, zeros."""
        texts = [texts] if isinstance(texts, str) else texts            # otherwise a str gives one row for each letter
        rows = [[self.start, *self.encode(text)[:LENGTH - 2], self.stop, *[0] * LENGTH][:LENGTH] for text in texts]
        return torch.tensor(rows, dtype=torch.long).view(len(rows), LENGTH)


class Layer(nn.Module):
    """Each token of x [b, l, d] attends to itself and to those before it, then two linear layers with an exact GELU."""
    def __init__(self, d, d_ff, heads, eps):
        super().__init__()
        self.heads, self.layer_norm1 = heads, nn.LayerNorm(d, eps=eps)
        self.self_attn = nn.ModuleDict({name: nn.Linear(d, d) for name in ("q_proj", "k_proj", "v_proj", "out_proj")})
        self.layer_norm2 = nn.LayerNorm(d, eps=eps)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(d, d_ff), gelu=nn.GELU(), fc2=nn.Linear(d_ff, d)))

    def forward(self, x):
        h = self.layer_norm1(x)
        q, k, v = (split_heads(self.self_attn[name](h), self.heads) for name in ("q_proj", "k_proj", "v_proj"))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)                     # [b, heads, l, d / heads]
        x = x + self.self_attn["out_proj"](h.transpose(1, 2).flatten(2))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """SD2.1's, with its tensor names. The defaults are its config.json: 340,387,840 parameters. 23 layers: it takes the
    last but one of OpenCLIP-H's 24, through the final norm. Zeros after the end are not masked: it reads them too."""
    def __init__(self, vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                 num_attention_heads=16, max_position_embeddings=LENGTH, layer_norm_eps=1e-5):
        super().__init__()
        if hidden_size % num_attention_heads or max_position_embeddings < LENGTH:
            raise ValueError(f"want heads that divide hidden_size {hidden_size}, and {LENGTH} or more positions")
        # The toy model learns from stills, in which "left" and "right" look alike. Nothing in the data separates such
        # words, so they stay as far apart as they start: 0.5, not CLIP's 0.04.
        tokens = torch.empty(vocab_size, hidden_size).uniform_(-0.5, 0.5)
        positions = torch.empty(max_position_embeddings, hidden_size).uniform_(-0.02, 0.02)
        sizes = hidden_size, intermediate_size, num_attention_heads, layer_norm_eps
        self.text_model = nn.ModuleDict({
            "embeddings": nn.ModuleDict({"token_embedding": nn.Embedding.from_pretrained(tokens, freeze=False),
                                         "position_embedding": nn.Embedding.from_pretrained(positions, freeze=False)}),
            "encoder": nn.ModuleDict({"layers": nn.Sequential(*[Layer(*sizes) for _ in range(num_hidden_layers)])}),
            "final_layer_norm": nn.LayerNorm(hidden_size, eps=layer_norm_eps)})

    def forward(self, ids):
        embeddings, layers = self.text_model["embeddings"], self.text_model["encoder"]["layers"]
        x = embeddings["token_embedding"](ids) + embeddings["position_embedding"].weight[:ids.shape[1]]     # [b, l, d]
        return self.text_model["final_layer_norm"](layers(x))
