"""Exercises on evaluation/preference.py: one votes in a real browser, without a screen, and reads the result."""
import html
import json
import re
import shutil
import subprocess
from urllib.parse import unquote

import pytest
from test_folder import describe
from test_fvd import clips

from evaluation import preference

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)

# Votes in turn by key and by click. `choose` says, from the number of the folder on the left, which side is voted for.
VOTER = """<script>
for (let k = 0; k < %d; k++) {
  const left = pairs[votes.length].left, side = (%s)(left);
  if (document.querySelectorAll("#pair img")[0].src !== pairs[votes.length].clips[left]) throw "the wrong clip is left";
  if (k %% 2) document.querySelectorAll("#pair img")[side].click();
  else dispatchEvent(new KeyboardEvent("keydown", {key: side ? "ArrowRight" : "ArrowLeft"}));
}
</script>"""


@pytest.fixture
def page(tmp_path):
    """The page of three pairs, and a fourth clip without a partner. A caption tries to end the script."""
    ours, theirs = clips(tmp_path / "ours", [10, 20, 30, 40]), clips(tmp_path / "theirs", [110, 120, 130])
    describe(ours, **{"0__webp": "a </script> of films"})
    assert preference.main([str(ours), str(theirs), "--out", str(tmp_path / "vote.html"), "--question", "Which?"]) == 0
    return tmp_path / "vote.html"


def vote(page, choose, count=3):
    """(the text that the page ends with, the file that it offers) after `count` votes in a browser."""
    page.write_text(page.read_text() + VOTER % (count, choose))
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
                          capture_output=True, text=True, timeout=120)
    body = done.stdout[done.stdout.index("</style>"):]
    link = re.search(r'href="data:application/json,([^"]*)"', body)
    text = html.unescape(re.sub(r"<script.*?</script>|<[^>]*>", " ", body, flags=re.DOTALL))
    return text, json.loads(unquote(html.unescape(link[1]))) if link else None


needs_browser = pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH to vote in")


@pytest.mark.slow
@needs_browser
def test_votes_for_our_clips_are_counted_wherever_they_are_shown(page):
    """Always for ours, which is left or right by chance: 3 of 3. Wilson's interval by hand: 3 / (3 + 1.96^2) to 1."""
    text, result = vote(page, "left => left")                                # breaks if a side is counted, not a folder
    ours, theirs = (str(page.parent / name) for name in ("ours", "theirs"))
    assert result["counts"] == {ours: 3, theirs: 0} and result["question"] == "Which?"
    assert result["interval"] == pytest.approx([3 / (3 + 1.959964**2), 1])
    assert sorted(vote["clip"] for vote in result["votes"]) == ["0", "1", "2"]
    assert "100.0 % of 3 pairs, 95 % interval 43.9 to 100.0 %" in text and f"{ours} 3, {theirs} 0" in text


@pytest.mark.slow
@needs_browser
def test_two_votes_for_theirs_leave_one_pair_to_see(page):
    """After two of three votes: the third pair is shown, there is no result yet."""
    text, result = vote(page, "left => 1 - left", 2)
    assert "3 of 3: click the better clip" in text and result is None


@pytest.mark.slow
@needs_browser
def test_always_left_is_no_opinion(page):
    """Whoever always votes left votes for the folder that chance put there: the votes say which."""
    _, result = vote(page, "left => 0")
    assert all(vote["chosen"] == vote["left"] for vote in result["votes"])


def test_the_page_needs_no_other_file(page):
    """All clips are inside, and nothing is loaded from a server. The caption did not end the script."""
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == 6 and "http" not in text and "a \\u003c/script> of films" in text


@pytest.mark.parametrize("words, ours, theirs", [("want a folder with clips directly in it", "empty", "ours"),
                                                 ("two clips have the same name but for the ending", "twice", "ours"),
                                                 ("no two clips have the same name", "ours", "others")])
def test_folders_without_pairs_are_refused(tmp_path, capsys, words, ours, theirs):
    """No clips, 0.webp beside 0.gif, or no equal names: one line?"""
    clips(tmp_path / "ours", [10])
    (clips(tmp_path / "twice", [10]) / "0.gif").touch()
    (clips(tmp_path / "others", [10]) / "0.webp").rename(tmp_path / "others" / "z.webp")
    assert preference.main([str(tmp_path / ours), str(tmp_path / theirs), "--out", str(tmp_path / "vote.html")]) == 2
    assert words in capsys.readouterr().err
