"""Images in the judge's questions: turned as their EXIF orientation says, or not."""

import base64
import io

import pytest
from PIL import Image

from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.calls import Planner
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.judge_images import PREPARATION, data_url
from scone_pl.evaluation.templates import Templates


def asked(items, folder, **config):
    planner = Planner(SCONEEVAL, JudgeConfig(**config), Templates.of(SCONEEVAL, JudgeConfig()))
    return planner.judgement(items[0], folder.image(items[0], 1), 1, 1).calls


def size_of(shown):
    return Image.open(io.BytesIO(base64.b64decode(data_url(shown).partition(",")[2]))).size


def test_answers_about_images_without_orientation_stay_valid(items, folder):
    calls = asked(items, folder)
    assert [call.ask for call in calls] == [call.ask for call in asked(items, folder, exif_orientation="ignore")]
    assert {shown.preparation for call in calls for shown in call.images} <= set(PREPARATION.values())


@pytest.mark.parametrize(("rule", "size"), [("apply", (32, 64)), ("ignore", (64, 32))])
def test_the_judge_sees_images_by_the_rule(items, folder, rule, size):
    before = asked(items, folder, exif_orientation=rule)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(folder.image(items[0], 1), exif=exif)
    calls = asked(items, folder, exif_orientation=rule)
    assert size_of(calls[0].images[-1]) == size
    assert calls[0].images[-1].preparation == PREPARATION["picture"] + ("-turned" if rule == "apply" else "")
    assert calls[0].ask != before[0].ask


def test_an_image_that_never_ends_is_no_question(items, folder):
    picture = folder.image(items[0], 1)
    picture.unlink()
    picture.symlink_to("/dev/zero")
    judgement = Planner(SCONEEVAL, JudgeConfig(), Templates.of(SCONEEVAL, JudgeConfig())).judgement(
        items[0], picture, 1, 1
    )
    assert not judgement.calls
    assert judgement.failure
    assert "\n" not in judgement.failure
