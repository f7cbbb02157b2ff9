"""What requests say, as pydantic models: the OpenAPI description is made of them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from qat_jax.serve.aspects import PHRASES
from qat_jax.serve.limits import ASPECTS, FILTERS, IDS, ITEMS, PARTS, RIGHT, SEEN, TEXT_LETTERS, VALUES, VECTOR

Id = Annotated[str, Field(strict=True, max_length=4096)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True, min_length=1, max_length=TEXT_LETTERS)]
Vector = Annotated[list[Number], Field(min_length=1, max_length=VECTOR, fail_fast=True)]
QueryType = Literal["text", "image"]
Value = StrictBool | StrictInt | Number | StrictStr


class _Strict(BaseModel):
  model_config = ConfigDict(extra="forbid")


class Part(_Strict):
  """One of text, image, item and vector, and how much it counts in the query."""

  text: Text | None = None
  image: str | None = Field(default=None, description="the bytes of a picture in base64, or as a data: address")
  item: Id | None = Field(default=None, description="the id of an item of the gallery")
  vector: Vector | None = Field(default=None, description="a frozen feature of the gallery's encoder")
  weight: Number = Field(default=1.0, ge=-100, le=100)
  query_type: QueryType | None = Field(default=None, description="what a vector is of")


class Range(_Strict):
  """Values between two ends, both inside; either may be left out."""

  least: Value | None = None
  most: Value | None = None


Query = Text | Part | Annotated[list[Part], Field(min_length=1, max_length=PARTS, fail_fast=True)]
Values = Annotated[list[Value], Field(max_length=VALUES, fail_fast=True)]
Filters = Annotated[dict[Annotated[str, Field(max_length=200)], Value | Values | Range], Field(max_length=FILTERS)]
Ids = Annotated[list[Id], Field(max_length=IDS, fail_fast=True)]
Seen = Annotated[list[Id], Field(max_length=SEEN, fail_fast=True)]


Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]
Names = Name | Annotated[list[Name], Field(max_length=ASPECTS, fail_fast=True)]
Phrases = Annotated[list[Text], Field(min_length=PHRASES[0], max_length=PHRASES[1], fail_fast=True)]


class Asked(_Strict):
  """What is searched with: a text, a part, or several parts with weights; marks, and what counts, in words."""

  query: Query
  query_type: QueryType | None = Field(default=None, description="the head for all parts; default: each part's own")
  right: Annotated[list[Id], Field(max_length=RIGHT, fail_fast=True)] = Field(
    default=[], description="marked items: find more that are like them; they themselves are not found again"
  )
  alike: Names = Field(default=[], description="aspects, by name, in which results are like the query")
  ignore: Names = Field(default=[], description="aspects that do not count")
  change: Text | Literal[True] | None = Field(
    default=None, description="the aspect of the picture that the text changes; true: the one that the text names"
  )
  aspects: Annotated[dict[Name, Phrases], Field(max_length=ASPECTS)] = Field(
    default={}, description="aspects of your own: name → phrases for their values, about 16"
  )


class Search(Asked):
  """A search of the gallery."""

  model_config = ConfigDict(
    json_schema_extra={
      "examples": [
        {"query": "a red mug", "k": 5},
        {"query": [{"item": "a-17"}, {"text": "in red", "weight": 0.5}], "mode": "both", "filters": {"shape": "ball"}},
      ]
    }
  )

  query: Query | None = None  # type: ignore[assignment]  # a picture uploaded beside it will do
  k: StrictInt = Field(default=20, ge=1, description="how many items")
  mode: Literal["plain", "adapted", "both"] = "adapted"
  exclude: Ids = Field(default=[], description="ids that shall not be found; items in the query never are")
  allowed: Ids | None = Field(default=None, description="the only ids that may be found")
  wrong: Seen = Field(default=[], description="marked items that are not meant: they are hidden")
  seen: Seen = Field(default=[], description="what was shown already: it is left out")
  group: Name | None = Field(
    default=None,
    description="a metadata column, such as picture: the best groups of items, each by its best item; or duplicates, "
    "for which no column is needed: items that are nearly the same picture",
  )
  diversity: Number = Field(default=0.0, ge=0, le=1, description="0: by score alone; 1: as unlike each other as can be")
  filters: Filters = Field(default={}, description="column → a value, a list of values, or a range; all must hold")


class Rerank(Asked):
  """Candidates in the order of the exact scores; the shape is that of the rerank calls of Cohere and Jina."""

  model_config = ConfigDict(
    extra="ignore", json_schema_extra={"examples": [{"query": "a red mug", "documents": ["a-17", "b-2"], "top_n": 1}]}
  )

  documents: list[Id | dict[str, object]] | None = Field(
    default=None, max_length=10_000, fail_fast=True, description='ids, or {"id": …}'
  )
  vectors: list[Vector] | None = Field(
    default=None, min_length=1, max_length=10_000, fail_fast=True, description="frozen features instead"
  )
  top_n: StrictInt | None = Field(default=None, ge=1)
  mode: Literal["plain", "adapted"] = "adapted"
  return_documents: StrictBool = False


class Adapt(Asked):
  """A query for another index."""

  model_config = ConfigDict(json_schema_extra={"examples": [{"query": "a red mug"}]})

  adaptation: StrictBool = Field(default=False, description="whether to return q', gate, left and right too")


class Why(Asked):
  """Why items are where they are."""

  model_config = ConfigDict(json_schema_extra={"examples": [{"query": "a red mug", "items": ["a-17"]}]})

  items: list[Id] = Field(min_length=1, max_length=20, fail_fast=True)


Kept = Annotated[
  dict[
    Annotated[str, Field(max_length=200)],
    StrictBool | StrictInt | Number | Annotated[StrictStr, Field(max_length=10_000)] | None,
  ],
  Field(max_length=200),
]


class Described(_Strict):
  """Metadata in place of what an item had."""

  metadata: Kept = Field(description="column → text, number, true or false; null is the same as leaving it out")


class NewItem(_Strict):
  """An item to add: a picture, or a frozen feature of the gallery's encoder."""

  id: Id | None = Field(default=None, description="one that is there is replaced; default: a digest of the content")
  image: str | None = Field(default=None, description="the bytes of a picture in base64, or as a data: address")
  vector: Vector | None = None
  metadata: Kept = {}


class Add(_Strict):
  """Items to add, all or none."""

  model_config = ConfigDict(
    json_schema_extra={"examples": [{"items": [{"id": "a-17", "metadata": {"caption": "a mug"}}]}]}
  )

  items: list[NewItem] = Field(min_length=1, max_length=ITEMS, fail_fast=True)


class Knn(BaseModel):
  """A search as clip-retrieval's clients write it. An empty text is none."""

  text: str | None = Field(default=None, max_length=TEXT_LETTERS)
  image: str | None = Field(default=None, description="the bytes of a picture in base64")
  image_url: str | None = Field(default=None, description="not fetched: refused")
  embedding_input: Vector | None = None
  modality: Literal["image"] = "image"
  num_images: StrictInt = Field(default=20, ge=0)
  num_result_ids: StrictInt | None = Field(default=None, ge=0)
  indice_name: Literal["adapted", "plain", ""] | None = None


class KnnMetadata(BaseModel):
  """Positions of items whose metadata clip-retrieval's clients ask for."""

  ids: list[StrictInt | Annotated[str, Field(pattern="^[0-9]{1,19}$")]] = Field(max_length=IDS, fail_fast=True)
  indice_name: Literal["adapted", "plain", ""] | None = None


MODELS = (Part, Range, Search, Rerank, Adapt, Why, Add, NewItem, Described, Knn, KnnMetadata)
