"""What several targets together want of one bundle: the union of their variants, one recipe for each engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepose.converters.recipes import RECIPES, Recipe, get_recipe
from edgepose.errors import ConversionError
from edgepose.targets import Target

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """Variants in the order of the targets, and recipes by engine."""

    variants: tuple[str, ...]
    recipes: Mapping[str, Recipe]


def plan(
    targets: Sequence[Target], task: str, can_make: Sequence[str], chosen: Mapping[str, Recipe] | None = None
) -> Plan:
    """Put targets together.

    Args:
        targets: In the order asked for.
        task: ``pose2d`` or ``lift3d``, which has recipes of its own where it pays.
        can_make: Variants that this version makes.
        chosen: Recipes by engine that the user has named; they come before the targets'.

    Raises:
        ConversionError: This version cannot make a variant, or two targets want one by different recipes.
    """
    for target in targets:
        missing = [name for name in target.variants if name not in can_make]
        if missing:
            raise ConversionError(
                f"target {target.name}: this version cannot make {', '.join(missing)}; choose with --to and --precision"
            )
    recipes = dict(chosen or {})
    owners: dict[str, str] = {}
    for target in targets:
        for name in target.recipes:
            recipe, engine = _recipe(name, task), name.partition("-")[0]
            if engine in owners and recipes[engine] != recipe:
                raise ConversionError(
                    f"targets {owners[engine]} and {target.name} want INT8 for {engine} by different recipes "
                    f"({recipes[engine].name}, {recipe.name}): make two bundles, or choose one with --recipe"
                )
            if engine not in recipes:
                recipes[engine], owners[engine] = recipe, target.name
    variants = dict.fromkeys(name for target in targets for name in target.variants)
    return Plan(tuple(variants), recipes)


def _recipe(name: str, task: str) -> Recipe:
    lifted = f"{name}-lift"
    return get_recipe(lifted if task == "lift3d" and lifted in RECIPES else name)
