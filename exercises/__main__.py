"""Functions of the project to write again, in the order of the paper. `check` says in words what is still wrong.

    python -m exercises                                lists them: section, difficulty, minutes, file and function
    python -m exercises start eq2 eq3 --in my_work     copies the project and blanks these functions; add more later
    python -m exercises start 3.3 --in my_work         all exercises of a section
    python -m exercises check eq2 --in my_work         tries the answer; without ids, all that were started
    python -m exercises show eq2                       the task, and the guide's words on it
    python -m exercises solution eq2                   the project's own lines

Exit code: 0 all answers are right, 1 one is not, 2 an error. `check` runs the code of the answer.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from exercises.catalogue import EXERCISES, ROOT, blank, certify, cut, project_source
from sd21.command import ArgumentParser, run
from sd21.files import atomic_write, read_json, write_json

GUIDE = ROOT / "docs" / "guide.md"
MARKER = "exercises.json"                           # in a working copy: the ids that were started


def select(words):
    """The exercises of these ids and sections ("3.3", "4"), in the order of the paper. ValueError for other words."""
    ids = {word: [e.id for e in EXERCISES.values() if word == e.id or f"{e.section}.".startswith(f"{word}.")]
           for word in words}
    if unknown := [word for word in words if not ids[word]]:
        raise ValueError(f"{unknown[0]}: neither an exercise nor a section; `python -m exercises` lists them")
    return [e for e in EXERCISES.values() if any(e.id in chosen for chosen in ids.values())]


def place(exercise):
    """"unet3d.py:95 TemporalConv.forward" """
    before, _, _ = cut(project_source(exercise.file), exercise.function)
    return f"{exercise.file}:{len(before.splitlines()) + 1} {exercise.function}"


def print_list(args):
    """All exercises, as a table or as JSON."""
    if args.json:
        print(json.dumps([{key: x for key, x in vars(e).items() if key != "check"} for e in EXERCISES.values()]))
        return
    for e in EXERCISES.values():
        where = f"{e.section} {e.source}"
        print(f"{e.id:19}{where:27}{'*' * e.difficulty:5}{e.minutes:2} min  {place(e)}\n    {e.task}")


def copy_project(folder):
    """Copies the Python files of the project, without tests and exercises, and links the models."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "exercises"]
    with atomic_write(folder) as part:
        for path in [*ROOT.glob("*.py"), *(path for room in rooms for path in room.iterdir() if path.is_file())]:
            target = part / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                shutil.copyfile(path, target)
            else:
                target.symlink_to(path)                                      # the upscaler's weights
        (part / "toy").symlink_to(ROOT / "toy", target_is_directory=True)
        write_json({"started": []}, part / MARKER)


def read_started(folder):
    """The ids that were started in a working copy. Raises ValueError."""
    started = read_json(folder / MARKER).get("started")
    if not (isinstance(started, list) and all(isinstance(id, str) for id in started)):
        raise ValueError(f"{folder / MARKER}: is damaged; make a new working copy")
    return started


def start(args):
    """Blanks functions in a working copy, which it makes if needed. A function that the student has changed stays."""
    exercises, folder = select(args.ids), args.folder
    if not (folder / MARKER).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: there are other files already; choose a new folder")
        copy_project(folder)
    started = read_started(folder)
    for e in exercises:
        file = folder / e.file
        text = file.read_text(encoding="utf-8")
        try:
            own = cut(text, e.function)[1]
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{file}: {error}; mend it first") from None
        if e.id in started or own != cut(project_source(e.file), e.function)[1]:
            print(f"{e.id}: {e.function} in {file} was started or changed before, and stays as it is")
            continue
        with atomic_write(file) as part:
            part.write_text(blank(text, e), encoding="utf-8")
        started.append(e.id)
        write_json({"started": started}, folder / MARKER)
        print(f"{e.id}: {e.function} in {file} is blank. {e.task}")


def check(args):
    """Tries answers, and says what is wrong."""
    if not args.ids and not (args.folder / MARKER).is_file():
        raise ValueError(f"{args.folder}: `start` did not make this folder; name the exercises to check")
    exercises = select(args.ids or read_started(args.folder))
    problems = {e.id: certify(e, (args.folder / e.file).read_text("utf-8-sig", "replace")) for e in exercises}
    if args.json:
        print(json.dumps([{"id": id, "right": not problem, "problem": problem} for id, problem in problems.items()]))
    else:
        print(*(f"{id}: {problem or 'right'}" for id, problem in problems.items()), sep="\n")
    return 1 if any(problems.values()) else 0


def show(args):
    """The task, and the paragraphs of the guide that name the exercise."""
    paragraphs = GUIDE.read_text(encoding="utf-8").split("\n\n")
    for e in select(args.ids):
        print(f"{e.id} · {e.section} {e.source} · {place(e)} · {e.minutes} minutes\n{e.task}\nHint: {e.hint}\n")
        print("\n\n".join(text for text in paragraphs if f"`{e.id}`" in text) + "\n")


def solution(args):
    """The project's own lines."""
    for e in select(args.ids):
        print(f"# {place(e)}\n{cut(project_source(e.file), e.function)[1]}")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = ArgumentParser("python -m exercises", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(function=print_list, json=False)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, function in {"list": print_list, "start": start, "check": check, "show": show,
                           "solution": solution}.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        if name != "list":
            command.add_argument("ids", nargs="*" if name == "check" else "+", metavar="ID",
                                 help="an exercise, or a section such as 3.3")
        if name in ("start", "check"):
            command.add_argument("--in", dest="folder", type=Path, required=True, metavar="FOLDER", help="working copy")
        if name in ("list", "check"):
            command.add_argument("--json", action="store_true", help="print JSON, for a grader")
    args = parser.parse_args(argv)
    return run(parser.prog, args.function, args)


if __name__ == "__main__":
    sys.exit(main())
