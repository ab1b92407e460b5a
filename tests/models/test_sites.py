import subprocess
import sys

import pytest

from workbench.core.errors import InputError
from workbench.models.sites import KINDS, WITHOUT_LAYER, Site, sites


@pytest.mark.parametrize("kind", KINDS)
def test_text_form_is_exact(kind):
    site = Site(kind) if kind in WITHOUT_LAYER else Site(kind, 12)
    assert Site.parse(str(site)) == site


def test_head_address_round_trips():
    assert Site.parse("head_out.3.11") == Site("head_out", 3, 11)
    assert str(Site("head_out", 3, 11)) == "head_out.3.11"


@pytest.mark.parametrize(
    "lens, ours",
    [
        ("blocks.5.hook_resid_post", "resid_post.5"),
        ("blocks.0.attn.hook_z", "head_out.0"),
        ("blocks.2.hook_attn_out", "attn_out.2"),
        ("blocks.7.mlp.hook_post", "mlp_hidden.7"),
        ("ln_final.hook_normalized", "final_norm"),
    ],
)
def test_transformer_lens_names_are_aliases(lens, ours):
    assert str(Site.parse(lens)) == ours


@pytest.mark.parametrize(
    "text, says",
    [
        ("resid_pots.3", r"\(did you mean 'resid_post'\?\)"),
        ("resid_post", "needs a layer"),
        ("logits.3", "takes no layer"),
        ("resid_post.3.1", "Only head_out"),
        ("resid_post.x", "looks like"),
        ("blocks.1.hook_q", "no site"),
    ],
)
def test_a_wrong_site_is_refused_with_a_hint(text, says):
    with pytest.raises(InputError, match=says):
        Site.parse(text)


def test_sites_of_a_kind():
    assert [str(s) for s in sites("resid_pre", range(2))] == ["resid_pre.0", "resid_pre.1"]


def test_sites_need_no_torch():
    code = "import sys, workbench.models.sites; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
