"""What is asked of a server by those who run it, and by the page: models, health, metrics, version, the pair."""

from importlib.metadata import version

from navtoken.policies import ThresholdPolicy, Writer
from navtoken.serving.answers import HealthAnswer, Model, ModelList, PairAnswer, PairModel, VersionAnswer
from navtoken.serving.errors import UnknownModel
from navtoken.serving.offered import public
from navtoken.serving.requests import MAX_N
from navtoken.serving.server import Server


def models(server: Server) -> ModelList:
    """The pair under its policy, and each model alone."""
    pair = server.pair
    contexts = {"slm": pair.slm.card.context, "llm": pair.llm.card.context}
    both = min(contexts.values())
    return ModelList(
        data=[
            Model(
                id=name,
                created=server.created,
                owned_by="navtoken",
                max_model_len=min(server.engine.capacity, contexts.get(policy or "", both)),
                policy=policy or public(server.offered.served),
            )
            for name, policy in server.names.items()
        ]
    )


def model(server: Server, name: str) -> Model:
    """One of them. Raises `UnknownModel`."""
    found = next((each for each in models(server).data if each.id == name), None)
    if found is None:
        raise UnknownModel(name, server.names)
    return found


def health(server: Server) -> HealthAnswer:
    """How the engine is."""
    found = server.engine.health()
    return HealthAnswer(
        status=found.status,
        error=found.error,
        crashes=found.num_crashes,
        running=found.num_running,
        waiting=found.num_waiting,
    )


def own_version() -> VersionAnswer:
    """The version that serves."""
    return VersionAnswer(version=version("navtoken"))


def pair(server: Server) -> PairAnswer:
    """What the page must know."""
    served, models_ = server.offered.served, server.pair
    return PairAnswer(
        name=server.options.name,
        slm=PairModel(reference=server.ids[Writer.SLM], parameters=models_.slm.card.parameters),
        llm=PairModel(reference=server.ids[Writer.LLM], parameters=models_.llm.card.parameters),
        context=min(server.engine.capacity, models_.slm.card.context, models_.llm.card.context),
        policy=public(served),
        threshold=served.threshold if isinstance(served, ThresholdPolicy) else None,
        policies=server.offered.offers(),
        max_top_logprobs=server.options.max_logprobs,
        max_n=MAX_N,
        examples=list(server.examples),
    )
