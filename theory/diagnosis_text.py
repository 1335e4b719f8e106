"""A diagnosis in plain sentences: what its numbers mean for Bradley-Terry on this data."""

from __future__ import annotations

import math

from theory.diagnose import Diagnosis, LabelNoise


def meaning(d: Diagnosis) -> list[str]:
    """One sentence or two a point, every number taken from the diagnosis."""
    return [
        *_existence(d),
        *_identification(d),
        *_transitivity(d),
        *(_no_noise(d) if d.label_noise is None else _noise(d, d.label_noise)),
        *_provenance(d),
    ]


def _existence(d: Diagnosis) -> list[str]:
    without = d.prompts - d.prompts_with_finite_mle
    if not without:
        return ["A finite maximum-likelihood reward exists on every prompt."]
    return [
        f"A finite maximum-likelihood reward exists on {d.prompts_with_finite_mle:,} of "
        f"{_many(d.prompts, 'prompt')} ({_percent(d.prompts_with_finite_mle, d.prompts)}). On the "
        f"other {without:,} some completions win against others and never lose back, so the "
        "likelihood rises for ever as their rewards part, towards a value that no reward attains: "
        "there a reward or a DPO policy that is free at every completion has no optimum, only a "
        "place where its training stopped. What "
        "ends it is a smaller class, a regulariser or early stopping, not the data.",
        f"{_many(d.separable_pairs, 'comparison')} of {d.pairs:,} "
        f"({_percent(d.separable_pairs, d.pairs)}) can be fitted perfectly all at once. "
        + _floor(d),
    ]


def _floor(d: Diagnosis) -> str:
    if d.least_log_loss is None:
        return f"The least training log-loss was not found: {d.least_log_loss_missing}."
    return (
        "Over all comparisons no reward has a training log-loss below "
        f"{d.least_log_loss:.4f} nats (guessing has {math.log(2):.4f})."
    )


def _identification(d: Diagnosis) -> list[str]:
    scattered = d.prompts - d.prompts_in_one_component
    text = (
        "Reward differences are identified only between completions of one component, and only "
        "where the maximiser is finite; a shift of each prompt's rewards is never seen. "
    )
    if scattered:
        text += (
            f"On {_many(scattered, 'prompt')} the compared completions fall into several "
            f"components ({d.components:,} components over all prompts, the largest of "
            f"{_many(d.largest_component, 'completion')}): nothing says how they compare, and "
            f"{_many(d.free_component_masses, 'component mass', 'component masses')} "
            f"{'is' if d.free_component_masses == 1 else 'are'} left to the reference or the "
            "regulariser."
        )
    else:
        text += (
            "The compared completions of each prompt form one component (the largest of "
            f"{_many(d.largest_component, 'completion')}), so no mass between components is free."
        )
    return [text, "Completions that were never compared are free on every prompt."]


def _transitivity(d: Diagnosis) -> list[str]:
    if not d.triples and not d.majority_cycles:
        return [
            "No three completions of a prompt are all compared with each other by strict "
            "majorities, so whether preferences are transitive cannot be seen in triples."
        ]
    text = (
        f"{d.intransitive_triples:,} of {_many(d.triples, 'triple')} "
        f"({_percent(d.intransitive_triples, d.triples)}) are intransitive, and there are "
        f"{_many(d.majority_cycles, 'majority cycle')}"
    )
    if not d.majority_cycles:
        return [f"{text}: some reward orders every prompt as its majorities do."]
    return [
        f"{text}: no reward agrees with every majority there. Such cycles come from label noise or "
        "from preferences that no Bradley-Terry reward has; majorities alone cannot tell which."
    ]


def _noise(d: Diagnosis, noise: LabelNoise) -> list[str]:
    low, high = noise.interval
    least, most = noise.fresh_log_loss_interval
    worst, best = noise.best_accuracy
    lines = [
        f"{_many(d.repeated_pairs, 'pair')} of {d.distinct_pairs:,} "
        f"({_percent(d.repeated_pairs, d.distinct_pairs)}) were compared at least twice, "
        f"{d.unanimous_pairs:,} of them unanimously. Two annotators of such a pair agree with "
        f"chance {noise.agreement:.2f} ({low:.2f} to {high:.2f}; {noise.interval_method}; coin "
        "flips agree with 0.50).",
        "The least training log-loss on repeated pairs was not found: "
        f"{noise.least_log_loss_missing}."
        if noise.least_log_loss is None
        else "On the comparisons of repeated pairs no reward has a training log-loss below "
        f"{noise.least_log_loss:.4f} nats a comparison. This floor is measured on the labels it "
        "is for, hence too low for new ones.",
        "By this agreement, on new labels of these pairs no model can expect a log-loss below "
        f"about {noise.fresh_log_loss:.3f} nats ({least:.3f} to {most:.3f} over the same "
        f"interval), and the best accuracy there is lies between about {worst:.0%} and {best:.0%}; "
        "each pair has equal weight. Whether this holds for the other pairs depends on how the "
        "repeated ones were chosen.",
    ]
    excess = 0.0 if noise.least_log_loss is None else noise.least_log_loss - noise.entropy_floor
    if excess > 1e-9:
        lines.append(
            f"A table with one probability a pair would reach {noise.entropy_floor:.4f} nats on "
            f"the repeated pairs; the Bradley-Terry form costs {excess:.2g} more."
        )
    if noise.couples_of_one_annotator:
        couples = _many(noise.couples_of_one_annotator, "couple")
        lines.append(
            f"{couples} of comparisons of one pair carry one annotator's name twice; they are left "
            "out of the agreement. They may be rows that were read twice."
        )
    return lines


def _no_noise(d: Diagnosis) -> list[str]:
    if d.repeated_pairs:
        return [
            f"{_many(d.repeated_pairs, 'pair')} of {d.distinct_pairs:,} were compared at least "
            "twice, but none by two annotators: the disagreement of annotators cannot be measured."
        ]
    return ["No pair was compared twice: label noise cannot be measured from this data."]


def _provenance(d: Diagnosis) -> list[str]:
    lines = []
    if d.label_noise is not None and d.annotators is None:
        lines.append("Annotators are unknown; each comparison counts as another annotator's.")
    elif d.label_noise is not None and d.pairs_without_annotator:
        lines.append(
            f"{_many(d.pairs_without_annotator, 'comparison')} of {d.pairs:,} name no annotator; "
            "each of them counts as another annotator's."
        )
    if d.dropped:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in sorted(d.dropped.items()))
        lines.append(f"{_many(sum(d.dropped.values()), 'row')} of {d.rows:,} dropped ({reasons}).")
    c = d.clashes
    if c is not None and (
        c.ids_with_several_texts or c.texts_with_several_ids or c.texts_with_and_without_id
    ):
        lines.append(
            "Prompts are told apart by their text. Ids disagree: "
            f"{_many(c.ids_with_several_texts, 'id')} with several texts, "
            f"{_many(c.texts_with_several_ids, 'text')} with several ids, "
            f"{_many(c.texts_with_and_without_id, 'text')} both with and without an id."
        )
    return lines


def _many(n: int, word: str, plural: str | None = None) -> str:
    return f"{n:,} {word if n == 1 else plural or word + 's'}"


def _percent(part: int, whole: int) -> str:
    """A share; never "0%" or "100%" unless it is exactly that."""
    if whole == 0:
        return "0%"
    share = 100.0 * part / whole
    if 0 < share < 0.1:
        return "under 0.1%"
    if 99.9 < share < 100:
        return "over 99.9%"
    return f"{share:.1f}%" if part not in (0, whole) else f"{share:.0f}%"
