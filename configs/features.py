"""Adapters for any retrieval set on disk: features of a frozen encoder, no images needed.

Command:   python -m train.main --config configs/features.py --config.data.root=ROOT --workdir runs/mine
           python -m eval.main  --config configs/features.py --config.data.root=ROOT --workdir runs/mine
The folder's layout: docs/data.md. Hardware, time and result: docs/notes/results.md.

Every other recipe starts from this one and changes what differs, so this is also the list of all that can be set:
another key is refused.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the recipe, in the order of the stages."""
  config = ConfigDict()
  config.seed = 0

  # Images and texts → features. With `root` the features are there already; else `source` is encoded into the workdir.
  # `views` above 0: pictures without labels; each is encoded so many times more as a view that is made of it.
  config.data = ConfigDict({"root": "", "source": "", "name": "", "folder": "", "limit": 0, "views": 0})
  config.data.reuse = ""  # a folder of features, or of runs: pictures that were encoded there are not encoded again
  config.data.allow_shared_instances = False  # of train with val or test; refused else (docs/data.md)
  config.encoder = ConfigDict({"name": "", "batch_size": 256, "rows_per_shard": 8192})

  # Features → semi-positives: the nearest `keep` training images of other instances. 0: none; the paper has 10.
  config.semi_positives = ConfigDict({"keep": 0, "neighbours": 100, "temperature": 0.1, "share": 0.2})

  # Aspects that do not count, told in words (docs/words.md): `ignore` is a tuple of names, such as ("scene",). A head
  # that leaves them out is tried for both query types. With labels it serves where validation says so; without
  # labels (`views`) it serves as told, since made views cannot judge it.
  # `file`: your own aspects, JSON; "": the package's own, for photographs. The features' encoder must read texts.
  config.aspects = ConfigDict({"file": "", "ignore": ()})

  # The hypernetwork. `form` is trained beside its baselines: a static map, and a query head alone of the same size.
  config.form = "adaptive"
  config.forms = ConfigDict(
    {
      "static": {},
      "query_only": {"hidden": 0, "dropout": 0.2},
      "adaptive": {"hidden": 0, "dropout": 0.2, "rank": 8, "token_hidden": 64, "layers": 1, "steps": 1},
      "gated": {"hidden": 0, "dropout": 0.2},
      "paper": {"rank": 64, "token_hidden": 512, "layers": 4, "steps": 4, "heads": 8, "dropout": 0.1},
    }
  )
  # Above 1: trained heads for an untouched gallery are the average of so many, each from a seed of its own.
  config.ensemble = 1
  # Which query types get trained heads. Images: "auto" trains where at least half the images have a second view, since
  # with few the closed form is better; and static maps alone where experts lead them by more than networks have added.
  config.trained = ConfigDict({"text": "always", "image": "auto"})
  # Whether a learned map of the gallery is tried too: "always", "never", or "auto", for image queries alone.
  config.gallery_map = "auto"

  # Parts, tried beside the best head, each kept only where validation says so; 0: not tried (docs/notes/which.md).
  # Pairs that a query remembers: it moves as training queries like it would have to. 4 · width bytes a pair.
  config.memory = ConfigDict({"text": 32768, "image": 0})
  # Pairs that say what an item is called: captions of training images like it, beside it. Doubles the width of items,
  # or with `width` above 0, of 2 · the features' at most, projects items and queries to that.
  config.captions = ConfigDict({"text": 32768, "image": 32768, "width": 0})
  # Training queries that level the items: one number against hubs, which many queries find and few mean.
  config.levelled = ConfigDict({"text": 8000, "image": 8000})

  # Training.
  config.noise = ConfigDict({"kind": "relative", "scale": 0.5})
  config.train = ConfigDict(
    {
      "batch_size": 256,
      "steps": 2000,
      "learning_rate": 1e-3,
      "end_learning_rate": 1e-5,
      "warmup_steps": 200,
      "weight_decay": 1e-2,
      "clip": 1.0,
      "temperature": 0.07,
      "patience": 600,
    }
  )
  # Fewer steps where this is how often each row has been looked at; 0: never fewer.
  config.epochs = ConfigDict({"text": 25, "image": 100})
  config.static_train = ConfigDict({"steps": 2000, "learning_rate": 2e-3})
  # Queries that a head is validated on while it trains, and that the gate chooses by, once.
  config.validation = ConfigDict({"every": 200, "queries": 1000, "gate_queries": 4000})

  # Evaluation: on the retrieval set's test split, or on a public benchmark by its own rule (docs/benchmarks.md).
  config.benchmark = ConfigDict(
    {
      "name": "",  # "": the test split; ilias, inquire, inquire_rerank, roxford5k, rparis6k, oxford5k, …
      "root": "",  # its official files
      "features": "",  # of its queries and gallery
      "distractors": "",  # a folder of features behind the gallery's (Oxford, Paris)
      "distractor_files": 100,  # ILIAS: how many, of a million each
      "mini_ids": "",  # ILIAS: the list of the 5M set
      "linear_layer": "",  # a published static layer, a .pth file, for the row published_linear
      "split": "test",  # INQUIRE
    }
  )
  # What to compare: names as in docs/benchmarks.md, or ("all",). `queries` 0: all of the test split.
  config.eval = ConfigDict(
    {
      "queries": 0,
      "shortlist": 1000,
      "intents": False,  # two intents over the toybox's gallery, and three aspects in words (configs/demo.py)
      "methods": (
        *("plain", "static", "neighbours", "query_only"),
        *("head_alone", "head_with_memory", "head_with_captions", "adapted", "adapted_shortlist"),
      ),
    }
  )
  config.lock()
  config.forms.unlock()  # a form takes settings that are not listed here
  return config
