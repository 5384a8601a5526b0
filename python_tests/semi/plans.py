"""Noisy students of a second: digits, a few updates each."""

from dataclasses import replace

from vtkernels.recipes import PseudoLabelled, Recipe, SelfTraining, get_recipe


def short_recipe(model: str = "vit_nano_patch4_32", epochs: int = 2, **unlabelled) -> Recipe:
    recipe = get_recipe("noisy_student_digits")
    return replace(
        recipe,
        model=replace(recipe.model, name=model, options={"dropout": 0.1}),
        data=replace(recipe.data, fraction=0.05, batch_size=16, valid_batch_size=64),
        unlabelled=replace(PseudoLabelled(ratio=2, confidence=0.0, per_class=40), **unlabelled),
        schedule=replace(recipe.schedule, warmup=0),
        train=replace(recipe.train, epochs=epochs, eval_every=epochs, log_every=1, ema_decay=0.9, save_every_minutes=None),
    )


def short_plan(cycles: int = 2, **unlabelled) -> SelfTraining:
    return SelfTraining(recipe=short_recipe(**unlabelled), cycles=cycles)
