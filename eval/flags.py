"""How eval runs: none of it changes a score, and none of it is in a recipe or a fingerprint."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.errors import RecipeError
from pipeline.flags import AdoptFlags, EngineFlags, ModelFlags, ShardFlags, WorkerFlags, check_url


@dataclass(frozen=True, slots=True)
class EvalFlags:
    """`engine` runs every model that no URL is given for, in this process; `models` says who serves the
    others, and what a server calls a model, where that is neither its name nor where its weights are."""

    engine: EngineFlags = field(default_factory=EngineFlags)
    models: ModelFlags = field(default_factory=ModelFlags)
    adopt: AdoptFlags = field(default_factory=AdoptFlags)
    workers: WorkerFlags = field(default_factory=WorkerFlags)
    shards: ShardFlags = field(default_factory=ShardFlags)

    def of(self, model: str) -> EngineFlags:
        """The flags of one model's engine."""
        urls = values_of(model, self.models.model_urls)
        if not urls:
            return self.engine
        name = next(iter(values_of(model, self.models.model_names)), None)
        return replace(self.engine, engine="server", urls=urls, served_name=name)

    def check(self, models: Iterable[str], forced_budgets: Sequence[int], *, judge: bool = False) -> None:
        """RecipeError where a flag says nothing of the models compared (or of the judge, where there is one),
        or a served one would have to be stopped inside its thinking."""
        known, served, names = list(models), dict[str, None](), dict[str, str]()
        known += ["judge"] if judge else []
        for text in self.models.model_urls:  # student=http://host:8000/v1, repeated for replicas
            model, equals, url = text.partition("=")
            if not equals or "/" in model:
                raise RecipeError(
                    f"--url {text}: say which model the server has, for example --url {known[0]}={text}"
                )
            if model not in known:
                raise RecipeError(
                    f"--url {text}: no model '{model}' is compared (there are: {', '.join(known)})"
                )
            check_url(url)
            served[model] = None
        for text in self.models.model_names:  # student=demo, once a served model
            model, _, name = text.partition("=")
            if not name:
                raise RecipeError(f"--served-name {text}: say whose name it is, for example student={text}")
            if model not in served:
                given = ", ".join(served) or "none"
                raise RecipeError(
                    f"--served-name {text}: no --url is given for '{model}' (given for: {given})"
                )
            if names.setdefault(model, name) != name:
                raise RecipeError(
                    f"--served-name: {model} has two names, {names[model]} and {name}; give one"
                )
        for model in served:
            if forced_budgets and model != "judge":
                raise RecipeError(
                    f"--url {model}=...: eval.forced_budgets is set, and a served chat cannot be continued "
                    "inside its thinking. Leave out the --url, so that the model runs in this process, or "
                    "the budgets"
                )
            self.of(model)  # a URL that stands twice


def values_of(model: str, texts: Iterable[str]) -> tuple[str, ...]:
    """What stands behind `model=`."""
    pairs = (text.partition("=") for text in texts)
    return tuple(value for name, _, value in pairs if name == model)
