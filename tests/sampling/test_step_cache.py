"""Extrapolated steps: which are computed, and that polynomials come out exactly."""

import pytest
import torch
from pipeline_helpers import pixels, tiny_model

from scone_pl import flow
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.errors import UserError
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.settings import StepCacheConfig
from scone_pl.sampling.step_cache import StepCache

CALL = {"images": [pixels()], "prompt": "x", "height": 16, "width": 16, "output_type": "latent"}


def run(config, velocity_of, num_steps=10, guided=lambda t: True):
    """The steps that were computed, and all velocities."""
    cache, computed, velocities = StepCache(config, num_steps), [], []
    for i, t in enumerate(flow.time_grid(num_steps, 3.0)[:-1].tolist()):
        velocity = cache.guess(i, t, guided=guided(t))
        if velocity is None:
            computed.append(i)
            velocity = velocity_of(t)
            cache.computed(t, velocity)
        velocities.append(velocity)
    return computed, velocities


@pytest.mark.parametrize(
    ("interval", "steps"), [(1, list(range(10))), (2, [0, 2, 4, 6, 8, 9]), (3, [0, 3, 6, 9]), (50, [0, 9])]
)
def test_first_last_and_every_nth_step_are_computed(interval, steps):
    assert run(StepCacheConfig(interval=interval), lambda t: torch.ones(2))[0] == steps


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_polynomial_of_the_order_is_exact_once_enough_is_known(order):
    coefficients = torch.tensor([[0.5, -1.0, 2.0][: order + 1], [1.0, 3.0, -2.0][: order + 1]])

    def polynomial(t):
        return (coefficients * torch.tensor([t**n for n in range(order + 1)])).sum(1)

    _, velocities = run(StepCacheConfig(interval=2, order=order), polynomial)
    times = flow.time_grid(10, 3.0).tolist()
    for i in range(2 * order, 10):
        assert torch.allclose(velocities[i], polynomial(times[i]), atol=1e-5)


def test_what_was_known_is_void_where_guidance_begins_or_ends():
    computed, velocities = run(
        StepCacheConfig(interval=4, order=1),
        lambda t: torch.full((1,), 5.0 if t > 0.7 else 1.0),
        guided=lambda t: t > 0.7,
    )
    times = flow.time_grid(10, 3.0).tolist()
    change = next(i for i, t in enumerate(times) if t <= 0.7)
    assert change in computed
    assert [v.item() for v in velocities] == pytest.approx([5.0 if t > 0.7 else 1.0 for t in times[:-1]])


def test_in_the_sampler():
    model = tiny_model()
    pipeline, passes = SconePipeline(model, byte_tokenizer()), []
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))

    def latents(num_inference_steps=6, **more):
        passes.clear()
        return pipeline(
            num_inference_steps=num_inference_steps, generator=torch.Generator().manual_seed(0), **CALL, **more
        ).images[0]

    whole = latents()
    assert len(passes) == 2 + 6, "two prefills, then the steps"
    assert torch.equal(latents(step_cache=StepCacheConfig(interval=1)), whole)
    cached = latents(step_cache=StepCacheConfig(interval=2, order=1))
    assert len(passes) == 2 + 4
    assert 0 < (cached - whole).abs().max() < whole.abs().max()
    handle.remove()


def test_guidance_in_every_nth_step_and_presets():
    """The pack of a step holds three branches, or the conditional one alone; a preset is no more than its fields."""
    model = tiny_model()
    pipeline, branches = SconePipeline(model, byte_tokenizer()), []
    handle = model.register_forward_pre_hook(lambda _, args: branches.append(len(args[0].latent_splits)))

    def latents(**more):
        branches.clear()
        image = pipeline(num_inference_steps=6, generator=torch.Generator().manual_seed(0), **CALL, **more).images[0]
        return image, branches[2:]

    whole, passes = latents()
    assert passes == [3] * 6
    again, passes = latents(preset="fast", unconditional_batch_skip_range=1, step_cache=StepCacheConfig(interval=1))
    assert passes == [3] * 6
    assert torch.equal(again, whole), "what is given wins over the preset"
    skipped, passes = latents(unconditional_batch_skip_range=2)
    assert passes == [3, 1] * 3
    assert 0 < (skipped - whole).abs().max() < whole.abs().max()
    _, passes = latents(unconditional_batch_skip_range=4, guidance_interval=(0.0, 0.9))
    assert passes == [1, 1, 3, 1, 1, 1], "counted from where guidance begins"
    fast, passes = latents(preset="fast")
    assert passes == [3, 3, 3]
    spelled, _ = latents(step_cache=StepCacheConfig(interval=3, order=1))
    assert torch.equal(fast, spelled)
    _, passes = latents(preset="fast", unconditional_batch_skip_range=2)
    assert passes == [3, 1, 3], "of the steps that are computed"
    latents(preset="fast", guidance_scale=1)
    assert branches[1:] == [1, 1, 1], "one prefill"
    handle.remove()


def test_bad_settings():
    for settings in ({"interval": 0}, {"order": -1}):
        with pytest.raises(UserError, match="must be a whole number, at least"):
            StepCacheConfig(**settings)
