"""Pages of the documentation that are generated: files of the repository, reference, results of the studies.

MkDocs calls `on_files` when it builds the site. Links between files of the repository become links between pages where
the site has a page of the file, and plain text elsewhere.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
REPORTS = "ablations/results/reports/proxy"
STUDIES = sorted(path.stem for path in (ROOT / REPORTS).glob("*.html") if path.stem != "index")
"""Studies with committed results."""
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "latte_pl/data/README.md": "reference/data_sets.md",
    "latte_pl/weights/README.md": "results/weights.md",
    "ablations/README.md": "results/index.md",
    "benchmarks/README.md": "results/speed.md",
    **{
        f"benchmarks/results/{path.name}": f"results/speed/{path.name}"
        for path in sorted((ROOT / "benchmarks/results").glob("*.md"))
    },
    f"{REPORTS}/index.md": "results/overview.md",
    **{f"{REPORTS}/{study}.html": f"results/{study}.md" for study in STUDIES},
}
"""Page of the site of each file of the repository."""
WRITTEN = {"README.md"}
"""Files whose page is written by hand, in this folder."""
IMAGES = (".png", ".gif", ".svg")
PACKAGES = (
    *("nn", "diffusion", "autoencoders", "data", "toy", "metrics", "training", "evaluation", "interop", "profiling"),
    "ablation",
)
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_config(config: Any) -> Any:
    """Add the pages of the studies to the section of results."""
    (results,) = (section["Results"] for section in config["nav"] if "Results" in section)
    pages = [("All studies", "overview"), *((study.replace("_", " ").capitalize(), study) for study in STUDIES)]
    results[1:1] = [{title: f"results/{name}.md"} for title, name in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and the images that they show."""
    generated = dict(repository_pages())
    generated |= {f"reference/{package}.md": reference(package) for package in PACKAGES}
    generated["reference/configs.md"] = configurations()
    for uri, content in generated.items():
        files.append(File.generated(config, uri, content=content))
    for path in sorted(images()):
        files.append(File.generated(config, f"assets/{path}", abs_src_path=str(ROOT / path)))
    return files


def repository_pages() -> Iterator[tuple[str, str]]:
    """Yield address and content of each page that is a file of the repository."""
    for source, page in PAGES.items():
        if source in WRITTEN:
            continue
        if source.startswith(REPORTS) and source.endswith(".html"):
            yield page, result(source, page)
        else:
            yield page, linked((ROOT / source).read_text(encoding="utf-8"), source, page)


def linked(text: str, source: str, page: str) -> str:
    """Return Markdown of a file of the repository with the links of its page."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)

    def link(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        address, mark, anchor = target.partition("#")
        if "://" in target or not address:
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), address))
        file = file if file.endswith((".md", ".html", *IMAGES)) else f"{file}/README.md"
        if file.endswith(IMAGES) and (ROOT / file).is_file():
            return f"{image}[{words}]({relative(f'assets/{file}', page)})"
        if file in PAGES:
            return f"[{words}]({relative(PAGES[file], page)}{mark + anchor if file not in WRITTEN else ''})"
        return words

    return "".join(part if part.startswith("```") else wide_tables(LINK.sub(link, part)) for part in parts)


def wide_tables(text: str) -> str:
    """Mark the tables of many columns, which scroll and whose numbers are not broken into lines."""

    def mark(match: re.Match[str]) -> str:
        wide = match[0].partition("\n")[0].count("|") > 7
        return f'<div class="numbers" markdown>\n\n{match[0]}\n</div>\n' if wide else match[0]

    return TABLE.sub(mark, text)


def relative(target: str, page: str) -> str:
    """Return the address of a file of the site as seen from a page."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def images() -> set[str]:
    """Return the images that pages of the repository's files show or link to."""
    found = set()
    for source in PAGES:
        if source.endswith(".html"):
            continue
        for _, _, target in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if file.endswith(IMAGES) and "://" not in target and (ROOT / file).is_file():
                found.add(file)
    return found


def result(source: str, page: str) -> str:
    """Return the page of a study: its report with the figures and samples of its HTML page."""
    html = (ROOT / source).read_text(encoding="utf-8")
    report = (ROOT / source).with_suffix(".md").read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    strips = re.findall(r'<div class="strips">.*?</figure>\s*</div>', html, flags=re.DOTALL)
    table, claims, rest = split_report(report)
    table = wide_tables(table)
    parts = [table, claims, "## Curves and differences\n", *(f'<div class="figure">{svg(f)}</div>\n' for f in figures)]
    if strips:
        parts += ["## Samples at the end of training\n", "The same indices and classes in every row.\n"]
        parts += [re.sub(r"\n\s*\n", "\n", strip) + "\n" for strip in strips]
    parts.insert(0, "---\nhide: [toc]\n---\n")  # room for the table
    return "\n".join([*parts, "## How it was measured\n", rest])


def split_report(report: str) -> tuple[str, str, str]:
    """Split a report into title, question and table; verdicts on the claims; and how it was measured."""
    blocks = report.strip().split("\n\n")
    table = next(n for n, block in enumerate(blocks) if block.startswith("|"))
    claims = [n for n, block in enumerate(blocks) if block.startswith("| claim |")]
    last = max([table, *claims])
    verdicts = "\n\n".join(blocks[n] for n in claims)
    verdicts = re.sub(r"\*\*(agrees|disagrees|undecided)\*\*", r"**\1**{ .\1 }", verdicts)
    return (
        "\n\n".join(blocks[: table + 1]) + "\n",
        f"## Verdicts on the claims\n\n{wide_tables(verdicts)}\n" if claims else "",
        "\n\n".join(block.replace("\n", "\n\n") for block in blocks[last + 1 :]),
    )


def svg(figure: str) -> str:
    """Return a figure whose ink has the colour of the text, so that it is readable on a dark page too."""
    figure = re.sub(r"(stroke|fill): #000000", r"\1: currentColor", figure)
    figure = re.sub(r"fill: #ffffff", "fill: none", figure)
    return re.sub(r"\n\s*\n", "\n", figure)


def reference(package: str) -> str:
    """Return the reference of a package: its modules with their public classes and functions."""
    folder = ROOT / "latte_pl" / package
    lines = [f"# latte_pl.{package}\n", docstring(folder / "__init__.py") + "\n"]
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_"):
            lines += [f"## latte_pl.{package}.{path.stem}\n", f"::: latte_pl.{package}.{path.stem}\n"]
    return "\n".join(lines)


def docstring(path: Path) -> str:
    """Return the docstring of a module, without importing it."""
    import ast

    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def configurations() -> str:
    """Return the page of the shipped configuration files."""
    folder = ROOT / "latte_pl/configs"
    lines = [
        "# Configuration files\n",
        "Files are found by the names below, such as `-c data/ucf101.yaml`, and compose from left to right. Explicit "
        "settings win over files. `default.yaml` is always read first. A file of your own is named by its path.\n",
        "`latte fit ... --print_config` prints the resolved configuration.\n",
    ]
    groups = {"": "The default", "data": "Data", "model": "Models", "trainer": "Trainer", "experiment": "Experiments"}
    groups["protocol"] = "Evaluation protocols"
    for group, title in groups.items():
        lines.append(f"## {title}\n")
        for path in sorted((folder / group).glob("*.yaml")):
            name = path.relative_to(folder).as_posix()
            lines += [f"### {name}\n", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n"]
    return "\n".join(lines)
