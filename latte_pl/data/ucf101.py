"""UCF101: 13,320 clips of 101 human actions, XviD AVI files of 320x240 at 25 frames a second."""

from pathlib import Path
from typing import Any, ClassVar

from latte_pl.data.folder import Item, Layout, VideoFolder
from latte_pl.data.index import scan

LISTS = "ucfTrainTestlist"


class UCF101Videos(VideoFolder):
    """UCF101 as it is distributed: ``UCF-101/<Class>/v_*.avi`` and the split lists in ``ucfTrainTestlist/``.

    Labels count from 0 in the order of ``classInd.txt``, which is alphabetical without regard to case. (Sorting the
    folders by character code, as some code bases do, swaps HammerThrow with Hammering and JumpRope with JumpingJack.)

    Args:
        root: The folder that holds ``UCF-101`` and the lists, or ``UCF-101`` itself with the lists beside it.
        fold: Which of the three official splits, 1 to 3. ``split="all"`` needs no lists; "val" means "test".
        kwargs: The arguments of `VideoFolder`.
    """

    folders: ClassVar[dict[str, tuple[str, ...]]] = {}
    holds_out: ClassVar[bool] = False
    expected: ClassVar[str] = (
        "{root}/UCF-101/<Class>/v_*.avi with {root}/ucfTrainTestlist/trainlist01.txt and testlist01.txt beside it; "
        'split "all" needs no lists'
    )

    def __init__(self, root: str | Path, fold: int = 1, **kwargs: Any) -> None:
        if fold not in (1, 2, 3):
            raise ValueError(f"fold is {fold}; UCF101 has the splits 1, 2 and 3")
        self.fold = fold
        super().__init__(root, **kwargs)

    def find(self) -> Layout:
        """Find the videos of all splits."""
        return self.layout(self.root, self.fold)

    @classmethod
    def layout(cls, root: Path, fold: int = 1) -> Layout:
        """Find the videos and look them up in the lists of a fold."""
        folder = "UCF-101" if (root / "UCF-101").is_dir() else ""
        lists = root / LISTS if (root / LISTS).is_dir() else root.resolve().parent / LISTS
        found = {video.path.removeprefix(folder).strip("/"): video for video in scan(root, folder)}
        names = _class_names(lists) or sorted({name.split("/")[0] for name in found if "/" in name}, key=str.casefold)
        labels = {name: label for label, name in enumerate(names)}
        splits: dict[str, str] = {}
        problems: list[tuple[str, str, str]] = []
        stems = {Path(name).with_suffix("").as_posix() for name in found}
        for split in ("train", "test"):
            path = lists / f"{split}list{fold:02}.txt"
            for line in path.read_text().splitlines() if path.is_file() else ():
                if line.strip():
                    name = line.split()[0]
                    splits[Path(name).with_suffix("").as_posix()] = split
                    if Path(name).with_suffix("").as_posix() not in stems:
                        problems.append((split, name, f"listed in {path.name} but not on disk"))
        items = []
        for name, video in found.items():
            split = splits.get(Path(name).with_suffix("").as_posix(), "")
            if name.split("/")[0] in labels:
                items.append(Item(video, split, labels[name.split("/")[0]]))
            else:
                problems.append((split, video.path, "not in the folder of a class"))
        return Layout(items, names, problems)


def _class_names(lists: Path) -> list[str]:
    """Read ``classInd.txt``, lines of a number from 1 and a name; [] without the file."""
    path = lists / "classInd.txt"
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
    return [name for _, name in sorted((int(number), name) for number, name in rows)]
