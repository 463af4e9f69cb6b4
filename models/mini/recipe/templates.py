"""Hand-written word lists and patterns for two registers that the corpora lack: image captions and news headlines.

The sentences are not labelled by hand: like every other training text they only get the teacher's embedding.
A *group* is a sentence and near variants of it (one slot changed), so that a batch holds pairs that are close but not equal.
"""

import random

PEOPLE = """man woman boy girl child baby person guy lady kid toddler teenager player cook chef dancer singer musician worker farmer
soldier policeman runner skater surfer cyclist skier swimmer climber student teacher doctor nurse tourist vendor fisherman
cowboy bride groom couple family crowd group|of|people group|of|men group|of|women group|of|children two|men two|women two|boys
two|girls two|people three|men three|children some|people several|people""".split()
ANIMALS = """dog cat puppy kitten horse cow sheep goat pig bird parrot duck chicken monkey panda tiger lion elephant bear fox rabbit
hamster mouse squirrel turtle fish dolphin snake lizard frog deer zebra giraffe kangaroo two|dogs two|cats three|horses
black|dog white|dog brown|dog black|cat white|horse""".split()
VERBS = """playing|a|guitar playing|the|piano playing|a|flute playing|the|violin playing|the|drums playing|football playing|soccer
playing|basketball playing|tennis playing|chess playing|cards playing|a|trumpet slicing|an|onion slicing|a|tomato
slicing|bread cutting|a|potato cutting|paper cutting|vegetables chopping|garlic peeling|a|potato peeling|an|apple cooking|rice
cooking|meat frying|eggs frying|fish mixing|ingredients stirring|soup pouring|water|into|a|glass pouring|oil|into|a|pan
adding|salt|to|a|bowl eating|pasta eating|a|banana eating|a|sandwich drinking|coffee drinking|milk riding|a|horse riding|a|bicycle
riding|a|motorcycle riding|a|skateboard driving|a|car driving|a|truck rowing|a|boat paddling|a|canoe flying|a|kite
flying|a|plane throwing|a|ball kicking|a|ball catching|a|ball hitting|a|ball climbing|a|rope climbing|a|mountain
lifting|weights doing|push-ups shooting|a|gun shooting|an|arrow singing|a|song singing|into|a|microphone dancing|on|a|stage
talking|on|the|phone talking|to|a|friend reading|a|book reading|a|newspaper writing|a|letter typing|on|a|keyboard
drawing|a|picture painting|a|wall putting|on|makeup combing|hair brushing|teeth washing|a|car washing|dishes applying|lipstick
folding|a|shirt sewing|cloth holding|a|baby holding|an|umbrella carrying|a|bag pushing|a|cart pulling|a|wagon
opening|a|box opening|a|door closing|a|window jumping|over|a|fence jumping|into|a|pool running walking sleeping smiling laughing
crying swimming skating skiing surfing standing sitting waving looking|at|a|camera watching|television
wearing|a|red|shirt wearing|a|blue|hat taking|a|photo feeding|a|dog petting|a|cat chasing|a|ball fixing|a|bike
building|a|house digging|a|hole crossing|the|street waiting|for|a|bus buying|fruit selling|flowers""".split()
ANIMAL_VERBS = """running jumping sleeping eating|grass eating|food drinking|water playing|with|a|toy playing|with|a|ball
chasing|a|ball chasing|a|cat running|through|water running|on|the|beach swimming|in|a|pool sitting|on|a|chair
lying|on|the|floor lying|in|the|grass standing|on|a|rock standing|in|a|field climbing|a|tree catching|a|frisbee
licking|a|bowl barking|at|a|mouse looking|out|of|a|window jumping|over|a|hurdle walking|along|a|road
rolling|on|the|ground carrying|a|stick flying|over|the|sea""".split()
PLACES = """in|the|park in|a|field in|the|kitchen in|the|street on|the|beach on|a|bench on|a|stage near|a|lake
in|the|snow in|front|of|a|building on|the|grass by|the|river at|a|table in|a|garden on|a|mountain under|a|tree in|a|room
on|the|sidewalk in|a|city at|night outside indoors in|the|water on|a|boat next|to|a|car""".split()
THINGS = """train bus car truck airplane boat ship bicycle motorcycle bed couch table chair desk computer television lamp bridge
church building house road bottle cup plate|of|food bowl|of|fruit vase|of|flowers kitchen bathroom living|room flock|of|birds
herd|of|cows field|of|flowers clock|tower stop|sign""".split()
THING_PLACES = """on|the|tracks at|the|station parked|on|the|street on|the|runway in|the|harbor flying|in|the|sky
against|a|wall near|a|window in|a|room with|a|blue|roof covered|in|snow beside|a|fence on|the|water in|the|grass
on|a|wooden|table in|front|of|a|house by|the|sea""".split()

COUNTRIES = """US China Russia Israel Iran Iraq Syria Egypt India Pakistan Afghanistan Germany France Britain Spain Italy Greece Turkey
Ukraine Japan North|Korea South|Korea Vietnam Thailand Philippines Indonesia Australia Canada Mexico Brazil
Venezuela Cuba South|Africa Nigeria Kenya Libya Lebanon Saudi|Arabia Yemen Poland Hungary Bangladesh""".split()
ACTORS = """president prime|minister foreign|minister government court police army rebels opposition|leader parliament protesters
central|bank officials militants troops judge former|president top|general lawmakers prosecutors""".split()
ACTS = """rejects|peace|talks calls|for|calm signs|trade|deal approves|new|law wins|election loses|vote resigns|over|scandal
condemns|attack warns|of|more|violence denies|nuclear|claims threatens|sanctions lifts|sanctions arrests|ten|suspects
frees|prisoners accused|of|corruption visits|flood|victims vows|to|fight|terrorism delays|decision announces|cease-fire
agrees|to|withdraw|troops raises|interest|rates cuts|growth|forecast bans|protests launches|investigation""".split()
EVENTS = """car|bomb suicide|bomber explosion earthquake plane|crash train|crash bus|crash fire flood typhoon storm shooting air|strike
roadside|bomb clashes landslide boat|accident mine|blast gas|leak hostage|crisis""".split()
RESULTS = """kills|#|people kills|at|least|# injures|# wounds|dozens leaves|#|dead leaves|#|missing damages|homes forces|thousands|to|flee
death|toll|rises|to|#""".split()
COMPANIES = """Microsoft Apple Google Intel IBM Sony Boeing Ford Toyota Samsung Oracle Amazon Nokia Dell Walmart Pfizer Airbus
the|company the|bank the|airline""".split()
DEEDS = """shares|rose|#|percent shares|fell|#|percent stock|closed|up|#|cents|at|$# stock|dropped|$#|to|$#
profit|rose|to|$#|million reported|a|loss|of|$#|million said|it|will|cut|#|jobs said|it|would|buy|a|rival|for|$#|billion
said|revenue|grew|#|percent|in|the|quarter declined|to|comment filed|a|lawsuit|in|federal|court
plans|to|release|a|new|product|this|year""".split()


def _words(slot):
    return slot.replace("|", " ")


def _article(noun):
    if noun.split()[0] in ("two", "three", "some", "several"):
        return noun, "are"
    return ("an " if noun[0] in "aeiou" else random.choice(["a ", "a ", "the "])) + noun, "is"


def _caption(slots):
    subject, verb, place = (_words(s) for s in slots)
    subject, be = _article(subject)
    form = random.random()
    tail = f" {place}" if form > 0.55 else ""
    if form < 0.08:
        return f"There {be} {subject} {verb}."
    text = f"{subject} {verb}{tail}" if form > 0.85 else f"{subject} {be} {verb}{tail}"
    return text[0].upper() + text[1:] + random.choice([".", ".", ""])


def _thing(slots):
    thing, place = (_words(s) for s in slots)
    return f"{_article(thing)[0].capitalize()} {place}{random.choice(['.', ''])}"


def _number(text):
    while "#" in text:
        text = text.replace("#", str(random.choice([random.randint(2, 20), random.randint(20, 99), random.randint(100, 900)])), 1)
    return text


def _event(slots):
    event, result, country = (_words(s) for s in slots)
    where = f" in {country}" if random.random() < 0.8 else ""
    return _number(f"{event.capitalize()} {result}{where}" if random.random() < 0.8 else f"{country} {event} {result}")


def _politics(slots):
    country, actor, act = (_words(s) for s in slots)
    return f"{country} {actor} {act}" if random.random() < 0.8 else f"{country} {act}"


def _business(slots):
    text = _number(f"{_words(slots[0])} {_words(slots[1])}")
    return text[0].upper() + text[1:] + random.choice([".", ", the company said.", " on Tuesday.", " on Friday."])


FAMILIES = [
    (0.36, _caption, (PEOPLE, VERBS, PLACES)),
    (0.14, _caption, (ANIMALS, ANIMAL_VERBS, PLACES)),
    (0.12, _thing, (THINGS, THING_PLACES)),
    (0.13, _event, (EVENTS, RESULTS, COUNTRIES)),
    (0.15, _politics, (COUNTRIES, ACTORS, ACTS)),
    (0.10, _business, (COMPANIES, DEEDS)),
]


def _one_group(size):
    _, render, lists = random.choices(FAMILIES, weights=[f[0] for f in FAMILIES])[0]
    base = [random.choice(l) for l in lists]
    group = [render(base)]
    while len(group) < size:
        variant = list(base)
        slot = random.randrange(len(lists))
        variant[slot] = random.choice(lists[slot])
        group.append(render(variant))
    return list(dict.fromkeys(group))


def groups(count, size):
    """`count` groups of up to `size` texts, from the global `random` state."""
    return [_one_group(size) for _ in range(count)]
