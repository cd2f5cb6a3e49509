import pytest

from scone_pl.worlds.shapes.base import write_base


@pytest.fixture(scope="session")
def mini_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers") / "base"
    write_base(folder)
    return folder
