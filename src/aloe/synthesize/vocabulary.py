"""Word lists that the acceptance rules share: which words carry no content of their own. English; written for this
project, extended with the words that stand in nearly every answer of the starter sets."""

from __future__ import annotations


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_WORDS = _set(
    """a about above after again against all almost also although always am among an and another any are aren't as at
    be because been before being below between both but by can can't cannot could couldn't did didn't do does doesn't
    doing don't down during each either else enough even ever every few for from further had hadn't has hasn't have
    haven't having he hence her here hers herself him himself his how however i if in indeed instead into is isn't it
    its itself just less like likely many may maybe me might more moreover most much must my myself near neither never
    next no nor not nothing now of off often on once one only onto or other others otherwise ought our ours ourselves
    out over own per perhaps quite rather s same say says seem seems several shall she should shouldn't since so some
    something sometimes soon still such t than that the their theirs them themselves then there therefore these they
    this those though through thus to together too toward towards two under unless until up upon us use used uses using
    usually very via was wasn't way we well were weren't what whatever when where whereas whether which while who
    whoever whole whom whose why will with within without won't would wouldn't yes yet you your yours yourself"""
)

# What a text says of an option without giving a reason for it.
VERDICT_WORDS = _set(
    """accurate answer answers apply applies appropriate asks best choice choices chosen conclude conclusion correct
    correctly eliminate eliminated exclude excluded false fit fits fitting incorrect incorrectly inappropriate
    irrelevant letter likely match matches option options question reason reject rejected right ruled select selected
    solution suitable therefore true unlikely unsuitable valid wrong"""
)

# Words of everyday answers that are no fact of this one: their loss in another wording says nothing.
COMMON_WORDS = _set(
    """able according add added additional advice affect affected affects aim allow allows already amount answer appear
    appears apply approach area areas ask asked available avoid away back become becomes began begin begins better bring
    brings build called care carry case cases cause caused causes causing certain change changes check choose clear
    clearly close come comes common commonly complete condition conditions consider consist contain contains continue
    control course day days decide decrease depend depends describe detail develop develops different difficult direct
    directly doctor doctors doesnt done dont drop due early easier easily easy effect effective effects especially
    example examples exact explain explains extra fact factor factors fall falls feel feels felt find finds first follow
    following follows form forms found full fully general generally get gets give given gives giving go goes going good
    great group groups happen happens hard health healthy help helpful helps high higher hold hour hours idea important
    improve improves include includes including increase increases increased involve involves keep keeps kind kinds know
    known large larger last late later lead leads learn leave left level levels lie lies life line little live long
    longer look lot low lower lowers main mainly make makes making manage mean means measure medical might month months
    move moves name need needed needs new normal normally note number occur occurs offer open order original overall
    part parts people period person persons place plan point points possible prevent problem problems process produce
    produces protect provide provides put raise raises range rate reach read really reason reasons recommend reduce
    reduces related remain remember remove reported require requires rest result results rise rises risk role run
    second see seen sense serious serve set severe short show shows side sign signs similar simple simply single size
    slow slowly small smaller sort source speak specific spread stage stand start starts state stay step steps stop
    stops strong such sure symptom symptoms take taken takes taking talk tell term terms test tests thing things think
    third time times treat treated treatment treatments try turn turns type types typical typically understand useful
    value vary view wait want week weeks whole wide work works worse year years"""
)
