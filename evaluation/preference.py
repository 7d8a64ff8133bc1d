"""Human evaluation: Sec. 4.1 and 4.2.2, Fig. 5 and 8. One HTML page shows pairs of clips and takes votes.

    python -m evaluation.preference ours/ theirs/ --out vote.html
    python -m evaluation.preference ours/ theirs/ --out motion.html --question "Which motion is better?"

The page needs no server and no network: open it in a browser, vote by arrow keys or clicks, hand in the file that it
offers at the end. Each voter gets another order, and other sides.
our reading  A forced choice. The interval is Wilson's: the usual one is too narrow where nearly all votes agree.
"""
import base64
import json
import sys
from pathlib import Path

from data.folder import read_captions
from data.media import check_output
from sd21.command import ArgumentParser, run
from sd21.files import atomic_write

TYPES = {".gif": "image/gif", ".webp": "image/webp", ".apng": "image/apng", ".png": "image/png", ".mp4": "video/mp4",
         ".webm": "video/webm"}     # that browsers play

PAGE = """<!doctype html><meta charset="utf-8"><title>Which do you prefer?</title>
<style>
  body { font: 18px sans-serif; text-align: center; margin: 2em; color: #222 }
  #pair img, #pair video { width: 40vw; max-width: 512px; margin: 1em; cursor: pointer; border: 3px solid #ddd }
  #pair :hover { border-color: #2a6fc0 }
</style>
<h2 id="question"></h2><p id="caption"></p><div id="pair"></div><p id="progress"></p>
<script type="application/json" id="data">DATA</script>
<script>
const {question, names, pairs} = JSON.parse(document.getElementById("data").textContent);
const show = (id, text) => { document.getElementById(id).textContent = text; };
for (let i = pairs.length - 1; i > 0; i--) {                        // Fisher and Yates: all orders are equally likely
  const k = Math.floor(Math.random() * (i + 1));
  [pairs[i], pairs[k]] = [pairs[k], pairs[i]];
}
for (const pair of pairs) pair.left = Math.random() < 0.5 ? 0 : 1;  // the number of the folder that is shown left
const votes = [];

function next() {
  const box = document.getElementById("pair");
  box.replaceChildren();
  if (votes.length === pairs.length) return finish();
  const pair = pairs[votes.length];
  show("caption", pair.caption);
  show("progress", `${votes.length + 1} of ${pairs.length}: click the better clip, or press the left or right arrow`);
  for (const side of [0, 1]) {
    const source = pair.clips[side === 0 ? pair.left : 1 - pair.left];
    const clip = document.createElement(source.startsWith("data:video") ? "video" : "img");
    Object.assign(clip, {src: source, onclick: () => vote(side)});
    if (clip.tagName === "VIDEO") Object.assign(clip, {autoplay: true, loop: true, muted: true});
    box.append(clip);
  }
}

function vote(side) {
  if (votes.length === pairs.length) return;
  const pair = pairs[votes.length];
  votes.push({clip: pair.name, left: names[pair.left], chosen: names[side === 0 ? pair.left : 1 - pair.left]});
  next();
}

function finish() {
  const n = votes.length, counts = names.map(name => votes.filter(vote => vote.chosen === name).length);
  const p = counts[0] / n, z2 = 1.959964 ** 2;                      // Wilson 1927
  const middle = (p + z2 / (2 * n)) / (1 + z2 / n);
  const half = Math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n);
  const result = {question, counts: {[names[0]]: counts[0], [names[1]]: counts[1]}, share: p,
                  interval: [Math.max(0, middle - half), Math.min(1, middle + half)], votes};
  const percent = x => (100 * x).toFixed(1);
  show("caption", `${names[0]} ${counts[0]}, ${names[1]} ${counts[1]}`);
  show("progress", `${names[0]} was chosen in ${percent(p)} % of ${n} pairs, 95 % interval ` +
       `${percent(result.interval[0])} to ${percent(result.interval[1])} %. `);
  const link = document.createElement("a");
  link.href = "data:application/json," + encodeURIComponent(JSON.stringify(result, null, 2));
  Object.assign(link, {download: "votes.json", textContent: "Save the votes", id: "file"});
  document.getElementById("progress").append(link);
}
addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") vote(0);
  if (event.key === "ArrowRight") vote(1);
});
show("question", question);
next();
</script>
"""


def clips_of(folder):
    """{name without ending: file} of the clips that a browser plays. Raises ValueError."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in TYPES] if folder.is_dir() else []
    clips = {path.stem: path for path in files}
    if not clips:
        raise ValueError(f"{folder}: want a folder with clips directly in it, of {' '.join(TYPES)}")
    if len(clips) < len(files):
        raise ValueError(f"{folder}: two clips have the same name but for the ending; want different names")
    return clips


def make_page(args):
    """The command: pairs the clips of equal names and writes the page."""
    check_output(args.out, [".html"], [args.ours, args.theirs])
    sides, captions = [clips_of(folder) for folder in (args.ours, args.theirs)], read_captions(args.ours)
    names = sorted(sides[0].keys() & sides[1].keys())
    if not names:
        raise ValueError(f"{args.ours} and {args.theirs}: no two clips have the same name")
    source = lambda path: f"data:{TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    pairs = [{"name": name, "caption": captions.get(sides[0][name], {}).get("text", ""),
              "clips": [source(side[name]) for side in sides]} for name in names]
    data = json.dumps({"question": args.question, "names": [str(args.ours), str(args.theirs)], "pairs": pairs})
    with atomic_write(args.out) as part:                            # no caption can end the script element
        part.write_text(PAGE.replace("DATA", data.replace("<", "\\u003c")), encoding="utf-8")
    alone = len(sides[0].keys() ^ sides[1].keys())
    print(f"{args.out}: {len(names)} pairs; {alone} clips without a partner were left out")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m evaluation.preference", description="A page that asks which clip is better.")
    parser.add_argument("ours", type=Path, help="folder of clips; captions come from here")
    parser.add_argument("theirs", type=Path, help="folder of clips with the same names")
    parser.add_argument("--out", type=Path, required=True, help="the .html file to write")
    parser.add_argument("--question", default="Which clip do you prefer?", help="the question above each pair")
    return run(parser.prog, make_page, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
