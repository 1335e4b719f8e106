"""What each figure measures, by name: policies, reward models and best-of-N, and at which sizes."""

from __future__ import annotations

from collections.abc import Sequence

from llm.config import StudyConfig

POLICIES = ("dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")  # beside sft
MORE_PROMPTS = "online_dpo_sft_more_prompts"
REWARD_MODELS = ("global_rm", "local_rm", "dpo_rm")
SOURCES = ("sft", "dpo")  # whose samples online pairs and best-of-N are made of


def sizes_of(figures: Sequence[str], config: StudyConfig) -> list[str]:
    """ "" (the main size) first."""
    named = dict.fromkeys(size for figure in figures for size in config.sizes(figure))
    return ["", *(size for size in named if size != config.main)]


def crossed(rm_size: str, config: StudyConfig) -> str:
    """The name of Fig. 4's best-of-N by a global reward model of a size: "bon_sft_by_2.8b"."""
    return f"bon_sft_by_{rm_size or config.main}"


def arms(figure: str, config: StudyConfig) -> dict[str, str]:
    """{arm in the figure's quantities: name of what is measured}, without branch and size.

    What is measured is a policy ("dpo"), a reward model ("global_rm") or a best-of-N ("bon_...").
    """
    policies = {
        "fig3": ("sft", *POLICIES),
        "fig5": ("sft", "dpo", "online_dpo_dpo"),
        "fig6": ("sft", "dpo", "dpo_2x", "online_dpo_dpo"),
        "fig7": ("sft", "online_dpo_sft", MORE_PROMPTS),
        "fig8": ("sft", "dpo", "online_dpo_sft", "online_dpo_dpo"),
        "fig9": (*REWARD_MODELS, "global_rm_matched"),
    }
    if figure == "fig4":
        names = [crossed(size, config) for size in sizes_of(("fig4",), config)]
        return {name: name for name in names}
    if figure == "fig10":
        names = [f"bon_{source}_{rm}" for source in SOURCES for rm in REWARD_MODELS]
        return {name: name for name in names}
    return {name: name for name in policies[figure]}
