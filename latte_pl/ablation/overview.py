"""The overview of all studies at a scale, as a page and as Markdown: one line for each claim."""

from typing import Any

from latte_pl.ablation.measures import MEASURES
from latte_pl.ablation.page import TEMPLATES, samples
from latte_pl.ablation.tables import claim_text, counts, markdown_table, title
from latte_pl.ablation.verdicts import Overall, Suite, answers, overall


def summaries(suite: Suite) -> list[dict[str, Any]]:
    """Return a summary of each study: title, question, why its models count as untrained, and verdicts on its claims.

    The verdicts are those after the correction for all tests of the suite, and by measure those of the page, too.
    """
    found = []
    for comparison in suite.comparisons:
        claims = [
            {
                "text": claim_text(part[0].test.claim),
                "verdict": overall([answer.suite_verdict for answer in part]),
                "measures": {answer.test.measure.name: (answer.suite_verdict, answer.verdict) for answer in part},
            }
            for part in answers(comparison, suite)
            if part
        ]
        study = comparison.study
        found.append(
            {
                "name": study.name,
                "title": title(study.name),
                "question": study.question,
                "paper": study.conclusion,
                "untrained": comparison.untrained(),
                "claims": claims,
            }
        )
    return found


def counted(suite: Suite) -> str:
    """Return one sentence: how many claims of all studies agree, disagree or are undecided."""
    verdicts: list[Overall] = [claim["verdict"] for study in summaries(suite) for claim in study["claims"]]
    return f"Of {len(verdicts)} claims of {len(suite.comparisons)} studies, {counts(verdicts)}."


def explanation(suite: Suite) -> list[str]:
    """Return what the verdicts of the overview mean, as paragraphs."""
    paragraphs = [
        f"Verdicts are corrected for all {len(suite.p_values)} tests of these studies by Holm's method (p < 0.05). "
        "Where the correction for the tests of one study alone gives another verdict, that follows in brackets. A "
        "claim agrees or disagrees if any measure decides, and no other measure decides against it."
    ]
    sharing = max((len(suite.sharing_baseline(comparison)) for comparison in suite.comparisons), default=0)
    if sharing:
        paragraphs.append(
            f"{sharing + 1} of these studies share the trials of their baseline and its seeds. If it happens to be "
            "good or bad with these seeds, their verdicts move together; only more seeds help against this."
        )
    return paragraphs


def overview_page(suite: Suite) -> str:
    """Return the overview as HTML, with links to the pages of the studies."""
    first = suite.comparisons[0]
    return TEMPLATES.get_template("overview.html").render(
        scale=first.scale,
        counted=counted(suite),
        explanation=explanation(suite),
        studies=summaries(suite),
        baseline=first.baseline,
        samples=samples(first, first.baseline),
    )


def overview_markdown(suite: Suite) -> str:
    """Return the overview as Markdown."""
    rows = []
    for study in summaries(suite):
        for claim in study["claims"]:
            row = {"study": f"[{study['title']}]({study['name']}.md)", "claim": claim["text"]}
            for measure in MEASURES.values():
                row[measure.name] = _both(*claim["measures"].get(measure.name, ("-", "-")))
            rows.append(row | {"verdict": f"**{claim['verdict']}**"})
    lines = [f"# All studies at scale {suite.comparisons[0].scale}", "", counted(suite), ""]
    lines += [*markdown_table(rows), ""] if rows else []
    lines += [
        f"{study['title']}: too early to say; {study['untrained']}." for study in summaries(suite) if study["untrained"]
    ]
    return "\n".join([*lines, "", "\n\n".join(explanation(suite))]) + "\n"


def _both(suite: str, page: str) -> str:
    """Return the verdict after the correction over the suite, and in brackets that of the page where it differs."""
    return suite if suite == page else f"{suite} ({page})"
