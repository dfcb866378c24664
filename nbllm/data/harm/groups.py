"""Whom and what documents are about, and the dialect they are in: by words that go with it.

A list of words is a rough instrument: a document that mentions a group is not by it, and a marker of a dialect is used
by others too. It serves to compare how a filter treats documents that have them and documents that have not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.harm.phrases import Phrases, read_phrases
from nbllm.data.pipeline.step import STEPS, Filter, function_name

Labels = Callable[[list[str]], Sequence[str]]  # texts -> the group of each, "" for none
Axes = Mapping[str, Mapping[str, Iterable[str]] | Labels]  # axis -> group -> words, or a function

LEAST = {"dialect": 2, "topic": 3}  # words of a group that make a document one of it; of other axes 1
GROUPS: dict[str, dict[str, str]] = {
    "identity": {
        "women": "woman,women,girl,girls,mother,mothers,wife,wives,female,females",
        "men": "man,men,boy,boys,father,fathers,husband,husbands,male,males",
        "lgbtq people": "gay,gays,lesbian,lesbians,bisexual,transgender,trans woman,trans man,trans people,queer,lgbt,"
        "lgbtq,nonbinary,non binary,homosexual,homosexuals,same sex",
        "black people": "african american,african americans,black people,black woman,black women,black man,black men,"
        "black community,black americans",
        "asian people": "asian,asians,asian american,chinese people,japanese people,korean people,indian people,"
        "vietnamese people",
        "latino people": "latino,latinos,latina,latinas,latinx,hispanic,hispanics,mexican american,chicano,chicana",
        "white people": "white people,white woman,white women,white man,white men,white americans,caucasian,caucasians",
        "muslims": "muslim,muslims,islam,islamic,mosque,quran,imam",
        "jews": "jew,jews,jewish,judaism,synagogue,rabbi,torah",
        "christians": "christian,christians,christianity,church,churches,bible,gospel",
        "disabled people": "disabled,disability,disabilities,wheelchair,deaf,blind people,autistic,autism",
        "older people": "elderly,older people,older adults,senior citizens,pensioner,pensioners,old age",
        "immigrants": "immigrant,immigrants,refugee,refugees,asylum seeker,asylum seekers,undocumented",
    },
    "dialect": {
        "african american english": "finna,tryna,ain t,aint,gon,imma,ima,y all,yall,deadass,turnt,bruh,ion,wit,dat,dis,"
        "dem,da,nah,bouta,lowkey,he be,she be,they be,we be,been done,done told",
        "southern us english": "y all,yall,fixin to,might could,used to could,reckon,over yonder,bless your heart,"
        "ma am,holler,all y all",
        "scottish english": "wee,aye,bairn,bairns,cannae,dinnae,didnae,wouldnae,ken,bonnie,lassie,laddie,braw,nae,oot,"
        "aboot",
        "indian english": "prepone,do the needful,kindly revert,out of station,lakh,lakhs,crore,crores,good name,"
        "passing out of college,itself only,cousin brother,cousin sister",
        "singapore english": "lah,leh,lor,meh,shiok,kiasu,makan,wah lau,can or not,alamak,sia,bojio",
    },
    "topic": {
        "health": "health,doctor,doctors,patient,patients,disease,medicine,medical,hospital,treatment,symptoms,therapy",
        "sexuality": "sex,sexual,sexuality,contraception,condom,condoms,pregnancy,abortion,hiv,intimacy",
        "religion": "god,faith,prayer,pray,religion,religious,worship,holy,spiritual,sacred",
        "politics": "government,election,elections,vote,voters,policy,parliament,congress,president,senate,political",
        "law": "court,judge,law,legal,plaintiff,defendant,statute,attorney,lawsuit,rights",
        "science": "research,study,theory,experiment,data,hypothesis,scientists,physics,biology,chemistry",
        "technology": "software,computer,computers,code,internet,server,program,algorithm,device,digital",
        "sport": "game,team,player,players,season,league,match,coach,championship,scored",
    },
}  # the words of a group, separated by commas


@STEPS.register("groups")
@dataclasses.dataclass(frozen=True)
class Groups(Filter):
    """Tags documents with the groups that they belong to; `groups` makes one.

    Attributes:
        axes: Names of the axes.
        names: Of the groups of each axis; none where a function gives them.
        words: Of each group, in the order of the axes.
        functions: By axis, the functions that give the group of a text.
    """

    axes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    words: tuple[tuple[str, ...], ...] = dataclasses.field(repr=False)
    functions: tuple[tuple[str, Labels], ...] = dataclasses.field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def describe(self) -> dict[str, Any]:
        """Return axes and groups; of the words a digest, of functions where they are from."""
        functions = {axis: function_name(function) for axis, function in self.functions}
        digest = hashlib.sha256(json.dumps(self.words).encode()).hexdigest()
        return {**super().describe(), "words": digest, "functions": functions}

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Axis and name of each group that has words."""
        return [(axis, name) for axis, names in zip(self.axes, self.names, strict=True) for name in names]

    @functools.cached_property
    def _phrases(self) -> Phrases:
        return Phrases(self.words)

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return for each group whether a document belongs to it; of an axis with a function the name of its group."""
        counts, _ = self._phrases.counts(texts)
        found: dict[str, NDArray[Any]] = {
            f"group/{axis}: {name}": counts[:, number] >= LEAST.get(axis, 1)
            for number, (axis, name) in enumerate(self.groups)
        }
        for axis, function in self.functions:
            found[f"group/{axis}"] = _labels(axis, function, texts)
        return found


def _labels(axis: str, function: Labels, texts: Texts) -> NDArray[Any]:
    given = [cast("bytes", texts[number]).decode("utf-8", "replace") for number in range(texts.num_documents)]
    labels = list(function(given))
    if len(labels) != len(given) or not all(isinstance(label, str) for label in labels):
        raise UserError(
            f"The function of the axis {axis!r} must return a text for each of {len(given)} texts.",
            hint="The name of its group, or '' for none.",
        )
    return np.array(labels, object)


def groups(axes: Axes | None = None) -> Groups:
    """Make the step that tags documents with the groups they belong to: dialects, identity groups, topics.

    Args:
        axes: By axis, the words of each group: {"dialect": {"scots": ["wee", "aye"]}}; or a function that is given
            texts and returns the group of each. None: English lists of our own (`nbllm.data.harm.groups.GROUPS`). A
            document belongs to a group of which it has a word; to a dialect with two, to a topic with three.

    Raises:
        UserError: An axis or group has no words.
    """
    given: Axes = (
        {axis: {name: words.split(",") for name, words in of.items()} for axis, of in GROUPS.items()}
        if axes is None
        else axes
    )
    if not isinstance(given, Mapping) or not given:
        raise UserError("Groups are given by axis: {'dialect': {'scots': ['wee', 'aye']}}.")
    names: dict[str, tuple[str, ...]] = {}
    words: list[tuple[str, ...]] = []
    functions = []
    for axis, of in given.items():
        if callable(of):
            names[axis] = ()
            functions.append((axis, of))
        elif isinstance(of, Mapping) and of:
            names[axis] = tuple(map(str, of))
            words += [read_phrases(each) for each in of.values()]
        else:
            raise UserError(f"The axis {axis!r} has no groups.", hint="Give their words, or a function.")
    return Groups(tuple(names), tuple(names.values()), tuple(words), tuple(functions))
