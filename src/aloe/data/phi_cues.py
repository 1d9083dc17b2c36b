"""The patterns behind the search for names: what stands before a name, after it, and what a word of a name looks like.

Every quantifier is bounded or possessive and every search looks at a window of `WINDOW` characters, so no text makes
them backtrack.
"""

from __future__ import annotations

import re

UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆĈČĎĐĒĖĘĚĞĢĪĮİĶĹĻĽŁŃŅŇŌŐŒŔŘŚŞŠŢŤŪŮŰŲŴŶŸŹŻŽȘȚ"
_LETTER = r"[^\W\d_]"
# One word of a name: O'Brien, Mei-ling, McDonald, J. A possessive 's stays outside.
WORD_START = re.compile(rf"{_LETTER}+")
CAPITAL_START = re.compile(rf"[{UPPER}](?<!\w.)")
TOKEN = re.compile(
    rf"{_LETTER}(?:{_LETTER}{{0,30}}+(?:['’](?![sS]\b){_LETTER}{{1,25}}+|-{_LETTER}{{1,25}}+){{0,3}}+|)(?!\w)"
)
RUN = re.compile(
    rf"[{UPPER}](?<!\w[{UPPER}])(?<!['’-][{UPPER}])(?:{_LETTER}{{1,30}}+(?:['’](?![sS]\b){_LETTER}{{1"
    rf",25}}+|-{_LETTER}{{1,25}}+){{0,3}}+|\.(?=\s[{UPPER}]))(?!\w)"
)
PARTICLES = frozenset(
    {
        *("de", "da", "do", "dos", "das", "del", "della", "di", "du", "la", "le", "van", "von", "der", "den"),
        *("ter", "ten", "bin", "ibn", "bint", "al", "el", "abu", "ap", "san"),
    }
)
INITIAL = re.compile(rf"[{UPPER}]\.?(?=\s)|[{UPPER}]\.(?=[{UPPER}]|\s)")
GAP = re.compile(r"[ \t\u00a0]{1,2}")
SURNAME_FIRST = re.compile(rf",\s{{1,2}}(?=[{UPPER}])")

STRONG_TITLE = re.compile(
    r"\b(?:dr|mrs?|mister|prof|dott|dra|sra|srta|señora?|señorita|mme|mlle|herr|frau|shri|smt|Ms|Sr"
    r"|Mx|Rev|Hon)\b\.?(?:\s{1,2}|(?<=\.))|\bms\.\s{1,2}|(?-i:\bM\.\s)",
    re.IGNORECASE,
)
SOFT_TITLE = re.compile(
    r"\b(?:doctor|nurse|miss|professor|aunt|auntie|aunty|uncle|sister|brother|pastor|reverend|rabbi"
    r"|imam|judge|officer|midwife|madame|monsieur|signora?|don|doña|dame|"
    r"grandma|grandpa|granny|nana|cousin|coach|sergeant|captain|colonel|lieutenant)\s{1,2}",
    re.IGNORECASE,
)
GREETING = re.compile(
    r"(?:^|[\n.!?:\"“]\s{0,3})(?:hi|hii|hello|hey|dear|hola|greetings|namaste|salaam|salam|bonjour"
    r"|good (?:morning|afternoon|evening|day))(?: there)?(?:,\s?|\s{1,2})",
    re.IGNORECASE,
)
SIGN_OFF = re.compile(
    r"\b(?:(?:best|kind|warm|warmest|kindest|with|many|all the)\s(?:regards|wishes|thanks|best)"
    r"|regards|sincerely|yours (?:truly|sincerely|faithfully)|thanks(?: again| in advance| a lot| "
    r"so much| and regards)?"
    r"|thank you(?: again| in advance| so much| very much)?|cheers|respectfully|cordially|all the "
    r"best|best|love|take care|god bless|blessings|saludos|un saludo|atentamente|warmly|yours|from)"
    r"(\s{0,2}[,.!:;\n–—-]\s{0,3}|\s{1,2})(?:[-–—~]\s?)?",
    re.IGNORECASE,
)
DASH_END = re.compile(rf"[-–—~](?<![^\s.!?].)[-–—~]?\s?(?=[{UPPER}a-z])")
INTRO = re.compile(
    r"\b(my (?:full )?name is|my name's|my name(?:'s)?:|name's|i am called|they call me|(?:please "
    r")?call me|goes by|known as|i am|i'm|im|this is|it's|myself|self|named|signed|me llamo|je "
    r"m'appelle)[, ]\s?",
    re.IGNORECASE,
)
FIELD = re.compile(
    r"\b((?:patient|pt|client|resident|child|baby|mother|father|spouse|guardian|contact|carer"
    r"|caregiver|husband|wife|parent|physician|doctor|provider|nurse|given|first|last|middle|maiden"
    r"|family|full|legal|preferred|emergency contact)(?:'s)? names?"
    r"|name of (?:the )?(?:patient|child|physician|doctor)|name|surname|nombre(?: y apellidos)?"
    r"|apellidos?|nom|prénom|paciente|next of kin|nok|emergency contact|"
    r"(?:referring|attending|primary care|treating|ordering|consulting|admitting) (?:physician"
    r"|doctor|provider|md|surgeon)|attending|"
    r"(?:electronically )?signed(?: by)?|dictated by|transcribed by|reviewed by|verified by"
    r"|prepared by|attn|attention|author"
    r"|patient|pt|client|physician|provider|consultant|surgeon|pcp|cc|caregiver|carer|guardian"
    r"|spouse|mother|father|doctor|nurse|informant|re|from|to|by|witness)\s?[:=]\s{0,3}",
    re.IGNORECASE,
)
NAME_FIELD = re.compile(
    r".*(?:name|nombre|apellido|nom\b|prénom|paciente|kin|nok|signed|dictated|transcribed|reviewed"
    r"|verified|prepared|emergency|attending|referring|physician$|attn)",
    re.IGNORECASE,
)
BY = re.compile(
    r"\b(?:(?:signed|seen|referred|accompanied|reviewed|dictated|examined|assessed|treated|followed"
    r"|evaluated|delivered|interviewed|written|completed|verified|admitted|operated on|managed"
    r"|counselled|counseled|brought in|prescribed) by"
    r"|under the care of|spoke (?:with|to)|discuss(?:ed|ion) (?:\w{2,5} )?with|talk(?:ed|ing)? "
    r"(?:to|with)|met (?:with )?|helped|thank(?:ed|s to)?|met with|visited|consulted|the patient,?"
    r"|patient|pt\.?|client|contacted|colleague|i saw|asked for|phoned|emailed)\s{1,2}",
    re.IGNORECASE,
)
KIN = re.compile(
    r"\b(?:my|his|her|our|their|your|patient's|the)\s(?:\w{2,12}\s){0,2}?(?:husband|wife|partner"
    r"|spouse|fianc[eé]e?|boyfriend|girlfriend|son|daughter|baby|child|kid|mother|mom|mum|father"
    r"|dad|brother|sister|sibling|twin|cousin|nephew|niece|"
    r"uncle|aunt|grandmother|grandfather|grandson|granddaughter|grandma|grandpa|friend|roommate"
    r"|neighbou?r|colleague|boss|caregiver|carer|doctor|gp|physician|cardiologist|oncologist"
    r"|surgeon|dentist|therapist|psychiatrist|psychologist|"
    r"neurologist|pediatrician|paediatrician|gynecologist|nurse|midwife|specialist|counsellor"
    r"|counselor|ex)(?:\s?[,(]\s?|\s(?:is |was )?(?:named |called |name is )?)",
    re.IGNORECASE,
)
PERSON_AFTER = re.compile(
    r"(?:\s?[,(]\s?(?:(?:aged?|age:?)\s)?\d{1,3}(?:\s?(?:[-–]\s?)?(?:yo|y/o|y\.o|years?|yrs?|-year"
    r"|m\b|f\b)|\s?[,)])|\s(?:is|was)\s(?:an?\s)?\d{1,3}[- ]?(?:year|yo|y/o|month|week)|,?\s(?:an?"
    r"|the)\s\d{1,3}[- ]?(?:year|yo|y/o|month)|"
    r"\s?\(?(?:DOB|MRN|d\.o\.b)|\s(?:was (?:admitted|seen|born|discharged|referred|brought"
    r"|evaluated|transferred|diagnosed|advised|prescribed|informed|contacted)|presented (?:to|with"
    r"|at)|says|said|told|asked|called me|phoned|denies|denied|states|stated|complains|lives (?:in"
    r"|at|with)|and (?:his|her) (?:wife|husband|family|mother|father|son|daughter)))"
)
CREDENTIAL = re.compile(
    r",?\s{0,2}(?:M\.D\.|MD\b(?!\s\d)|M\.?B\.?B\.?S\b|MBChB|Ph\.?D\b|D\.O\.|DO\b|R\.N\.|RN\b|BSN\b"
    r"|FRCP|FACP|FACS|FRCS|MRCP|MRCGP|DDS\b|DMD\b|DPM\b|NP\b|PA-C|FNP|CRNA|LCSW|PharmD|Pharm\.D"
    r"|PsyD|MSW|Esq\b)"
)
END = re.compile(r"\s{0,2}(?:$|\n|[.!,;)]|[-–—]\s|\(|\bmd\b)", re.IGNORECASE)
AFTER_I_AM = re.compile(r"\s{0,2}(?:[,.!]\s|and\b|from\b|here\b|speaking\b|writing\b|aged?\b|\d)")
AFTER_LOWER_KIN = re.compile(
    r"\s?[,)]|\s(?:is|was|has|had|and|who|said|says|also|got|went|will|would|can|lives|takes|told)\b"
)
GREETING_END = re.compile(r"\s{0,2}(?:[,.!:;?\n–—-]|$)")
LINE_END = re.compile(r"\s{0,2}[.!,]{0,2}\s{0,2}(?:\n|$)")
SURE_INTROS = (
    *(
        "my name",
        "my full",
        "name's",
        "i am called",
        "they call",
        "call me",
        "please call",
        "goes by",
        "me llamo",
        "je m'",
    ),
)
VOWEL = re.compile("[aeiouy]")
# Words that make a place of the name after them: Saint Lucia, Puerto Rico.
SAINTS = frozenset(
    {
        *("st", "saint", "san", "santa", "sao", "los", "las", "el", "new", "fort", "port", "lake", "mount", "mt"),
        *("north", "south", "east", "west", "santo", "puerto", "rio"),
    }
)

# The word before a candidate that makes each cue pattern worth trying: one walk over the words finds the places, and a
# pattern then looks at the few characters before each.
_BEFORE = {
    "title": "dr mr mrs mister prof dott dra sra srta señor señora señorita mme mlle herr frau shri smt ms "
    "sr mx rev hon m",
    "soft": "doctor nurse miss professor aunt auntie aunty uncle sister brother pastor reverend rabbi imam "
    "judge officer midwife madame monsieur signor "
    "signora don doña dame grandma grandpa granny nana cousin coach sergeant captain colonel lieutenant",
    "greeting": "hi hii hello hey dear hola greetings namaste salaam salam bonjour morning afternoon evening day there",
    "sign": "regards wishes thanks best sincerely truly faithfully again advance lot much you cheers "
    "respectfully cordially love care bless blessings "
    "saludos saludo atentamente warmly yours from",
    "intro": "name is name's it's i'm name's am im me by as myself self named signed llamo appelle called",
    "field": "name names surname nombre apellido apellidos nom prénom paciente kin nok contact physician "
    "doctor provider md surgeon attending by signed attn "
    "attention author patient child pt client consultant pcp cc caregiver carer guardian spouse "
    "mother father nurse informant re from to witness",
    "by": "by of with to patient pt client contacted colleague saw for phoned emailed visited consulted "
    "helped thank thanked met",
    "kin": "husband wife partner spouse fiance fiancee fiancé fiancée boyfriend girlfriend son daughter "
    "baby child kid mother mom mum father dad brother sister sibling twin "
    "cousin nephew niece uncle aunt grandmother grandfather grandson granddaughter grandma grandpa "
    "friend roommate neighbor neighbour colleague boss caregiver carer "
    "doctor gp physician cardiologist oncologist surgeon dentist therapist psychiatrist "
    "psychologist neurologist pediatrician paediatrician gynecologist nurse midwife "
    "specialist counsellor counselor ex named called is was",
}
CUES_OF: dict[str, tuple[str, ...]] = {}
for _cue, _listed in _BEFORE.items():
    for _word in _listed.split():
        CUES_OF[_word] = (*CUES_OF.get(_word, ()), _cue)
EDGES = '.,:;=!?()[]"“”*#-–—~'
WINDOW = 72  # characters before a candidate that a cue pattern may look at

MENTION = re.compile(r"[^\W\d_]{1,40}+(?:['’](?![sS]\b)[^\W\d_]{1,40}+|-[^\W\d_]{1,40}+){0,3}+")
# Rules too weak for their words to be looked for in the rest of the text.
WEAK_RULES = (
    *("given_name", "given_name_lower", "given_and_unknown", "ambiguous_and_unknown", "unknown_and_surname"),
    *("dash_signature", "kin"),
)


LOWER_WORD = re.compile(r"[^\W\d_]{2,30}+(?:['’-][^\W\d_]{1,25}+){0,3}+")
LOWER_PERSON = re.compile(
    r"\s(?:is|was) an? \d{1,3}[- ]?(?:year|yo\b|y/o)|,?\s(?:m\.d\.|md\b|mbbs|phd|r\.n\.|rn\b|frcp"
    r"|dds)|\s(?:told|drove|asked|called|texted|phoned) (?:me|us)\b"
)
PROFESSION = re.compile(
    r"doctor|\bgp|phys|gist|surgeon|dentist|therap|iatri|nurse|midwife|specialist|counsel|carer|caregiver"
)
INTRO_END = re.compile(r"\s?(?:[,.!]|from|and|here|speaking|aged|\d|$)")
FIELD_END = re.compile(r"\s{0,2}(?:[,;.()\n|]|$|DOB|MRN|\d)")
PAIR_FIELD_END = re.compile(r"\s{0,2}(?:[,;(\n|]|$|DOB|MRN|Age)")
NEXT_WORD = re.compile(r"[ -]([^\W\d_]{1,30})")
NEXT_WORDS = re.compile(r"(?:['’][sS]?)?(?:[ -][^\W\d_]{1,40}){1,3}")
