"""BibTeX of the papers that the Explorer's panels follow."""

from __future__ import annotations

ENTRIES = {
    "nostalgebraist2020lens": """@misc{nostalgebraist2020lens,
  title = {interpreting {GPT}: the logit lens},
  author = {nostalgebraist},
  year = {2020},
  howpublished = {LessWrong}
}""",
    "belrose2023eliciting": """@article{belrose2023eliciting,
  title = {Eliciting Latent Predictions from Transformers with the Tuned Lens},
  author = {Belrose, Nora and Furman, Zach and Smith, Logan and Halawi, Danny and Ostrovsky, Igor and McKinney, Lev and
            Biderman, Stella and Steinhardt, Jacob},
  journal = {arXiv preprint arXiv:2303.08112},
  year = {2023}
}""",
    "elhage2021mathematical": """@article{elhage2021mathematical,
  title = {A Mathematical Framework for Transformer Circuits},
  author = {Elhage, Nelson and Nanda, Neel and Olsson, Catherine and Henighan, Tom and Joseph, Nicholas and Mann, Ben
            and Askell, Amanda and others},
  journal = {Transformer Circuits Thread},
  year = {2021}
}""",
    "olsson2022context": """@article{olsson2022context,
  title = {In-context Learning and Induction Heads},
  author = {Olsson, Catherine and Elhage, Nelson and Nanda, Neel and Joseph, Nicholas and DasSarma, Nova and Henighan,
            Tom and Mann, Ben and others},
  journal = {Transformer Circuits Thread},
  year = {2022}
}""",
    "heimersheim2024use": """@article{heimersheim2024use,
  title = {How to use and interpret activation patching},
  author = {Heimersheim, Stefan and Nanda, Neel},
  journal = {arXiv preprint arXiv:2404.15255},
  year = {2024}
}""",
    "wang2022interpretability": """@article{wang2022interpretability,
  title = {Interpretability in the Wild: a Circuit for Indirect Object Identification in {GPT-2} small},
  author = {Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, Jacob},
  journal = {arXiv preprint arXiv:2211.00593},
  year = {2022}
}""",
    "bricken2023monosemanticity": """@article{bricken2023monosemanticity,
  title = {Towards Monosemanticity: Decomposing Language Models With Dictionary Learning},
  author = {Bricken, Trenton and Templeton, Adly and Batson, Joshua and Chen, Brian and Jermyn, Adam and Conerly, Tom
            and others},
  journal = {Transformer Circuits Thread},
  year = {2023}
}""",
    "cunningham2023sparse": """@article{cunningham2023sparse,
  title = {Sparse Autoencoders Find Highly Interpretable Features in Language Models},
  author = {Cunningham, Hoagy and Ewart, Aidan and Riggs, Logan and Huben, Robert and Sharkey, Lee},
  journal = {arXiv preprint arXiv:2309.08600},
  year = {2023}
}""",
}
PAPERS = {
    "lens": ("nostalgebraist2020lens", "belrose2023eliciting"),
    "token_groups": ("nostalgebraist2020lens",),
    "waterfall": ("elhage2021mathematical",),
    "direct_effects": ("elhage2021mathematical", "wang2022interpretability"),
    "patch_map": ("heimersheim2024use",),
    "paths": ("wang2022interpretability",),
    "patterns": ("elhage2021mathematical",),
    "head_scores": ("olsson2022context",),
    "features": ("bricken2023monosemanticity", "cunningham2023sparse"),
}  # method of an Exploration -> its entries


def bibtex(panel: str) -> str:
    """The entries of a panel's method; empty where it follows no paper."""
    return "\n\n".join(ENTRIES[key] for key in PAPERS.get(panel, ()))
