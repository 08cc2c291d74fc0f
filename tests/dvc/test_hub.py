"""DVC reads from the Hub over HTTP what was uploaded in its own layout: see docs/howto/hub.md."""

from __future__ import annotations

import isodense

CONFIG = """[core]
    remote = hub
['remote "hub"']
    url = {url}/datasets/team/prompts-dvc/resolve/main
    auth = custom
    custom_auth_header = Authorization
    password = Bearer {token}
"""


def test_dvc_pulls_from_a_private_data_set_of_the_hub(finished, hub, tmp_path):
    hub.token = "hf_test"  # noqa: S105
    hub.add("team/prompts-dvc", finished.root / ".dvc/cache")
    mate = finished.clone(tmp_path / "mate")
    config = CONFIG.format(url=hub.url, token=hub.token)
    (mate.root / ".dvc/config.local").write_text(config)
    mate.run("dvc", "pull", "density")
    found = isodense.load_weights(mate.root / "data/density")
    assert found.metadata == isodense.load_weights(finished.root / "data/density").metadata
