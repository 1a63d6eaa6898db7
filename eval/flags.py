"""How eval runs: none of it changes a score, and none of it is in a recipe or a fingerprint."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pipeline.errors import RecipeError
from pipeline.sampling import EngineFlags
from pipeline.sampling.engine import check_url


@dataclass(frozen=True, slots=True)
class EvalFlags:
    """`engine` runs every model that no URL is given for; `urls` are the servers of the others, by model, and
    `served_names` what those call a model, where that is neither its name nor where its weights are."""

    engine: EngineFlags = field(default_factory=EngineFlags)
    urls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    served_names: dict[str, str] = field(default_factory=dict)
    verifier_workers: int = 2

    def of(self, model: str) -> EngineFlags:
        """The flags of one model's engine."""
        urls = self.urls.get(model, ())
        if not urls:
            return self.engine
        return replace(self.engine, engine="server", urls=urls, served_name=self.served_names.get(model))


def urls_by_model(urls: Iterable[str], models: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read `student=http://host:8000/v1`, repeated for replicas. RecipeError: no known model, or no URL."""
    known = list(models)
    found: dict[str, tuple[str, ...]] = {}
    for text in urls:
        model, equals, url = text.partition("=")
        if not equals or "/" in model:
            raise RecipeError(
                f"--url {text}: say which model the server has, for example --url {known[0]}={text}"
            )
        if model not in known:
            raise RecipeError(f"--url {text}: no model '{model}' is compared (there are: {', '.join(known)})")
        check_url(url)
        found[model] = (*found.get(model, ()), url)
    return found


def names_by_model(names: Iterable[str], served: Iterable[str]) -> dict[str, str]:
    """Read `student=demo`, once a served model. RecipeError: no model with a URL, no name, or two names."""
    known = list(served)
    found: dict[str, str] = {}
    for text in names:
        model, _, name = text.partition("=")
        if not name:
            raise RecipeError(f"--served-name {text}: say whose name it is, for example student={text}")
        if model not in known:
            held = ", ".join(known) or "none"
            raise RecipeError(f"--served-name {text}: no --url is given for '{model}' (given for: {held})")
        if found.setdefault(model, name) != name:
            raise RecipeError(f"--served-name: {model} has two names, {found[model]} and {name}; give one")
    return found
