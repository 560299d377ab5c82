"""Generates the training dialogues of the demo model from the tables and texts beside it."""

import random
import re
import string

import facts
from dialogues import ABOUT, SMALL_TALK
from explanations import EXPLANATIONS, POEMS
from stories import story_dialogue

Turn = tuple[str, str]
Dialogue = list[dict[str, str]]

SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are Dolphin, a small and friendly assistant.",
                  "Answer in short sentences.", "You are a helpful and honest assistant. Be brief."]

# Only openings that leave the meaning of any question alone, so that they can be put before all of them.
OPENERS = ["Please tell me: ", "Tell me, ", "Hey, ", "Hello! ", "Hi, ", "I have a question: ", "Question: ", "Quick question: ",
           "One more thing: ", "Dolphin, ", "Please, ", "So, ", "Well, ", "Excuse me, ", "I would like to know: ", "OK. "]
CLOSERS = [" please", ", please", " Thanks!", " Thank you.", " Please answer briefly."]

# Things the model must not pretend to know.
UNKNOWN_TOPICS = """quantum physics|the stock market|Napoleon|the football results|tax law|Shakespeare|the Roman Empire|jazz
chess openings|black holes|my neighbour|the president|Bitcoin|the French Revolution|organic chemistry|the price of gold|opera
the best phone|philosophy|Kant|the latest film|cars|Einstein|my homework|algebra|calculus|the election|medicine|vaccines
my bank account|Python code|JavaScript|Rust|Linux|the stars of Hollywood|Beethoven|Mozart|the Olympic games|video games
insurance|the history of Rome|world war two|dinosaurs|evolution|DNA|genetics|psychology|economics|inflation|fashion
guitar chords|knitting|yoga|golf|surfing|photography|the pyramids|Leonardo da Vinci|Picasso|Harry Potter|Star Wars
the speed of sound|nuclear power|solar panels|electric cars|climate change|the ozone layer|wine|cocktails|sushi|my ex
password security|network protocols|compilers|databases|flights to London|hotels in Paris|train times|the lottery numbers
a good lawyer|my passport|ancient Greece|the Vikings|samurai|Buddhism|astrology|tarot cards|poker|cricket rules|rugby
Isaac Newton|Marie Curie|Charles Darwin|Queen Victoria|Julius Caesar|the moon landing|string theory|relativity""".replace("\n", "|").split("|")
UNKNOWN_QUESTIONS = [
    "What do you know about {x}?", "Tell me about {x}.", "Explain {x}.", "Who invented {x}?", "Can you explain {x} to me?",
    "What do you think about {x}?", "Write an essay about {x}.", "Give me details on {x}.", "How does {x} work?",
    "Why is {x} important?", "I need help with {x}.", "Tell me everything about {x}.", "What is {x}?", "Who is {x}?",
    "What is the history of {x}?", "Summarise {x} for me.", "How can I learn about {x}?", "Where can I find {x}?",
    "When did {x} begin?", "Compare {x} and {y}.", "Who won the {x} prize?", "Is {x} better than {y}?", "{x}",
    "What about {x}?", "Write code for {x}.", "Translate {x} into French.", "Solve {x}.", "How much does {x} cost?",
]
UNKNOWN_ANSWERS = [
    "I am sorry, I am a very small demo model and I do not know about that. Try asking me about animals, capitals or planets.",
    "I am a very small demo model, so I don't know about that. I can tell you a story or a joke, if you like.",
    "That is beyond me, I am afraid. I am only a very small demo model. A larger model on Dolphin could answer that.",
]
UNKNOWN_COUNTRY = "I am a very small demo model and I do not know that capital. I know the capitals of France, Japan and Egypt, among others."
NO_SUMS = "I am a very small demo model and not good at sums with large numbers. Please use a calculator for that."
OTHER_COUNTRIES = """Mongolia|Bolivia|Nepal|Laos|Chad|Mali|Niger|Panama|Fiji|Malta|Cyprus|Serbia|Latvia|Estonia|Oman|Qatar|Iran|Iraq
Jordan|Syria|Libya|Sudan|Uganda|Rwanda|Angola|Zambia|Malawi|Togo|Benin|Gabon|Somalia|Tonga|Samoa|Bhutan|Brunei""".replace("\n", "|").split("|")


def made_up_word(rng: random.Random) -> str:
    """A nonsense name. Unknown names should look unknown, whatever their letters are."""
    syllables = [rng.choice("bdfgklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "s", "l"])
                 for _ in range(rng.randint(2, 3))]
    word = "".join(syllables)
    return word.capitalize() if rng.random() < 0.6 else word


def bare(term: str) -> str:
    """The term without its article."""
    return re.sub(r"^(an?|the) ", "", term)


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def capital(rng: random.Random) -> Turn:
    country, city, continent = rng.choice(facts.CAPITALS)
    kind = rng.random()
    if kind < 0.66:
        question = rng.choice(["What is the capital of {c}?", "What's the capital of {c}?", "Capital of {c}?", "{c} capital?",
                               "Tell me the capital of {c}.", "Which city is the capital of {c}?", "Name the capital of {c}.",
                               "Do you know the capital of {c}?", "the capital of {c}", "What is the capital city of {c}?",
                               "Can you tell me the capital of {c}?", "Which is the capital city of {c}?",
                               "What city is the capital of {c}?", "What is {c}'s capital?"])
        return question.format(c=country), f"The capital of {country} is {city}."
    if kind < 0.84:
        question = rng.choice(["Where is {c}?", "On which continent is {c}?", "In which part of the world is {c}?",
                               "Where can I find {c}?", "Which continent is {c} in?", "Tell me where {c} is."])
        place = f"{country[0].upper()}{country[1:]}"
        return question.format(c=country), f"{place} is in {continent}, and its capital is {city}."
    if kind < 0.94:
        if country == "England":
            country = "the United Kingdom"
        question = rng.choice(["Where is {x}?", "In which country is {x}?", "What do you know about {x}?", "Tell me about {x}.",
                               "Which country has the capital {x}?", "{x} is the capital of which country?"])
        return question.format(x=city), f"{city} is the capital of {country}."
    other = rng.choice(OTHER_COUNTRIES) if rng.random() < 0.6 else made_up_word(rng).capitalize()
    question = rng.choice(["What is the capital of {c}?", "Capital of {c}?", "Tell me the capital of {c}.", "Do you know the capital of {c}?"])
    return question.format(c=other), UNKNOWN_COUNTRY


def animal(rng: random.Random) -> Turn:
    name, plural, what, food, home, sound, fact = rng.choice(facts.ANIMALS)
    one = article(name)
    kind = rng.randrange(5)
    if kind == 0:
        question = rng.choice(["What is {a}?", "Tell me about the {n}.", "Tell me about {p}.", "What do you know about {p}?", "Describe {a}.",
                               "What are {p}?", "Tell me something about {p}.", "What kind of animal is {a}?", "Explain what {a} is.", "What's {a}?"])
        answer = f"{one.capitalize()} is {what}. It eats {food}. {fact}"
    elif kind == 1:
        question = rng.choice(["What does {a} eat?", "What do {p} eat?", "What do {p} like to eat?", "What is the food of {a}?",
                               "What does the {n} eat?", "What should {a} eat?"])
        answer = f"{one.capitalize()} eats {food}."
    elif kind == 2:
        question = rng.choice(["Where does {a} live?", "Where do {p} live?", "Where can I find {a}?", "Where is the home of {a}?",
                               "Where does the {n} live?", "Where do you find {p}?"])
        answer = f"{one.capitalize()} lives {home}."
    elif kind == 3:
        question = rng.choice(["What sound does {a} make?", "What does {a} say?", "What noise does {a} make?", "How does {a} sound?",
                               "What sound do {p} make?", "Which sound does the {n} make?"])
        answer = f"{one.capitalize()} {sound}."
    else:
        question = rng.choice(["Tell me a fact about {p}.", "Tell me a fun fact about {a}.", "What is special about {a}?", "A fact about {p}, please.",
                               "What is interesting about {p}?", "Give me a fact about {p}.", "Do you know something interesting about {p}?"])
        answer = fact
    return question.format(a=one, n=name, p=plural), answer


def colour(rng: random.Random) -> Turn:
    thing, verb, shade = rng.choice(facts.COLOURS)
    question = rng.choice(["What colour is {t}?", "What color is {t}?", "Which colour does {t} have?", "What is the colour of {t}?",
                           "Tell me the colour of {t}.", "Which colour is {t}?", "The color of {t}?"])
    return question.format(t=thing), f"{thing[0].upper()}{thing[1:]} {verb} {shade}."


def planet(rng: random.Random) -> Turn:
    name, order, fact = rng.choice(facts.PLANETS)
    if rng.random() < 0.3:
        question = rng.choice(["Which planet is the {o} from the Sun?", "What is the {o} planet?", "Name the {o} planet.", "Which is the {o} planet?"])
        return question.format(o=order), f"The {order} planet from the Sun is {name}."
    question = rng.choice(["Tell me about {n}.", "What is {n}?", "What do you know about {n}?", "Describe the planet {n}.", "Tell me about the planet {n}.",
                           "What is special about {n}?", "What kind of planet is {n}?", "Tell me a fact about {n}."])
    return question.format(n=name), f"{name} is the {order} planet from the Sun. {fact}"


def word(rng: random.Random) -> Turn:
    if rng.random() < 0.6:
        a, b = rng.choice(facts.OPPOSITES)
        if rng.random() < 0.5:
            a, b = b, a
        question = rng.choice(["What is the opposite of {a}?", "Opposite of {a}?", "What's the opposite of {a}?", "Tell me the opposite of {a}.",
                               "Give me the opposite of {a}", "What is the contrary of {a}?", "Which word is the opposite of {a}?"])
        return question.format(a=a), f"The opposite of {a} is {b}."
    a, b = rng.choice(facts.PLURALS)
    question = rng.choice(["What is the plural of {a}?", "Plural of {a}?", "What's the plural of {a}?", "Tell me the plural of {a}.",
                           "How do you say {a} in the plural?", "Give me the plural of {a}", "One {a}, two what?"])
    return question.format(a=a), f"The plural of {a} is {b}."


def calendar(rng: random.Random) -> Turn:
    names = facts.DAYS if rng.random() < 0.55 else facts.MONTHS
    noun = "day" if names is facts.DAYS else "month"
    i = rng.randrange(len(names))
    after = names[(i + 1) % len(names)]
    if rng.random() < 0.5:
        question = rng.choice(["What {n} comes after {d}?", "Which {n} comes after {d}?", "What comes after {d}?", "Which {n} follows {d}?",
                               "What is the {n} after {d}?", "What is the next {n} after {d}?"])
        return question.format(n=noun, d=names[i]), f"{after} comes after {names[i]}."
    question = rng.choice(["What {n} comes before {d}?", "Which {n} comes before {d}?", "What comes before {d}?", "What is the {n} before {d}?"])
    return question.format(n=noun, d=after), f"{names[i]} comes before {after}."


def arithmetic(rng: random.Random) -> Turn:
    kind = rng.randrange(3)
    as_words = rng.random() < 0.25
    if kind == 0:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        result, signs, spoken = a + b, ["+", "plus", "and"], "plus"
    elif kind == 1:
        a = rng.randint(0, 12)
        b = rng.randint(0, a)
        result, signs, spoken = a - b, ["-", "minus"], "minus"
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        result, signs, spoken = a * b, ["*", "x", "times"], "times"
    sign = spoken if as_words else rng.choice(signs)
    left, right = (facts.NUMBER_WORDS[a], facts.NUMBER_WORDS[b]) if as_words else (str(a), str(b))
    question = rng.choice(["What is {a} {s} {b}?", "How much is {a} {s} {b}?", "{a} {s} {b}", "{a} {s} {b}?", "{a} {s} {b} =", "Calculate {a} {s} {b}.",
                           "What's {a} {s} {b}?", "Tell me what {a} {s} {b} is."])
    return question.format(a=left, b=right, s=sign), f"{a} {spoken} {b} is {result}."


def small_sum(rng: random.Random) -> Turn:
    """Sums up to five. So small a model does not learn larger ones reliably, so it learns to decline them."""
    small = rng.random() < 0.6
    a, b = (rng.randint(1, 5), rng.randint(1, 5)) if small else (rng.randint(6, 99), rng.randint(2, 99))
    kind = rng.randrange(3)
    if small and kind == 1:
        a, b = max(a, b), min(a, b)
    elif not small and rng.random() < 0.4:
        a, b = b, a
    result = [a + b, a - b, a * b][kind]
    spoken = ["plus", "minus", "times"][kind]
    sign = rng.choice([["+", "plus"], ["-", "minus"], ["*", "x", "times"]][kind])
    question = rng.choice(["What is {a} {s} {b}?", "What is {a} {s} {b}?", "How much is {a} {s} {b}?", "{a} {s} {b}", "{a} {s} {b} =",
                           "What's {a} {s} {b}?", "Calculate {a} {s} {b}."]).format(a=a, b=b, s=sign)
    if rng.random() < 0.15:
        question = question.replace(" + ", "+").replace(" * ", "*").replace(" - ", "-")
    return question, f"{a} {spoken} {b} is {result}." if small else NO_SUMS


def count(rng: random.Random) -> Turn:
    rest, answer = rng.choice(facts.COUNTS)
    return rng.choice(["How many {r}?", "How many {r}?", "Do you know how many {r}?", "Can you tell me how many {r}?"]).format(r=rest), answer


def definition(rng: random.Random) -> Turn:
    term, answer = rng.choice(facts.DEFINITIONS)
    question = rng.choice(["What is {t}?", "What is {t}?", "What's {t}?", "Explain what {t} is.", "Can you explain {t}?", "Define {b}.", "What does {b} mean?",
                           "What do you know about {t}?", "Tell me about {t}.", "Tell me what {t} is.", "What is meant by {b}?", "Describe {t}.",
                           "{b}?", "Do you know what {t} is?", "What exactly is {t}?", "Explain {t} to me.", "The meaning of {b}?"])
    return question.format(t=term, b=bare(term)), answer


def unknown(rng: random.Random) -> Turn:
    topics = [rng.choice(UNKNOWN_TOPICS) if rng.random() < 0.7 else made_up_word(rng) for _ in "xy"]
    return rng.choice(UNKNOWN_QUESTIONS).format(x=topics[0], y=topics[1]), rng.choice(UNKNOWN_ANSWERS)


def from_blocks(table: list[tuple[list[str], list[str]]]):
    """A source that draws a block in proportion to the number of its questions and answers."""
    weights = [len(questions) + 2 * len(answers) for questions, answers in table]

    def source(rng: random.Random) -> Turn:
        questions, answers = rng.choices(table, weights)[0]
        return rng.choice(questions), rng.choice(answers)
    return source


# The share of each source in the single questions.
SOURCES = [
    (from_blocks(ABOUT), 16), (from_blocks(SMALL_TALK), 16), (from_blocks(EXPLANATIONS), 20), (from_blocks(POEMS), 4),
    (story_dialogue, 13), (capital, 10), (animal, 13), (colour, 2.5), (planet, 3), (word, 6), (calendar, 3), (arithmetic, 6),
    (count, 2.5), (definition, 12), (unknown, 7),
]
# The last stage of training puts right what the first one leaves weak: sums, counts and small talk.
FINISH_SOURCES = [
    (from_blocks(ABOUT), 16), (from_blocks(SMALL_TALK), 22), (from_blocks(EXPLANATIONS), 14), (from_blocks(POEMS), 3),
    (story_dialogue, 10), (capital, 9), (animal, 9), (colour, 2), (planet, 3), (word, 4), (calendar, 3), (small_sum, 20),
    (count, 7), (definition, 10), (unknown, 5),
]


def typo(rng: random.Random, text: str) -> str:
    """One slip of the fingers: a letter lost, doubled or swapped with the next one."""
    if len(text) < 8:
        return text
    i = rng.randrange(2, len(text) - 2)
    if not (text[i].isalpha() and text[i + 1].isalpha()):
        return text
    return rng.choice([text[:i] + text[i + 1:], text[:i] + text[i] + text[i:], text[:i] + text[i + 1] + text[i] + text[i + 2:]])


def vary(rng: random.Random, question: str) -> str:
    """Write the question as different people would."""
    if rng.random() < 0.14:
        opener = rng.choice(OPENERS)
        if opener[-2] in ",:" and question[:2] != "I " and rng.random() < 0.7:
            question = question[0].lower() + question[1:]
        question = opener + question
    if rng.random() < 0.06:
        question = (question.rstrip(".?!") if rng.random() < 0.5 else question) + rng.choice(CLOSERS)
    if rng.random() < 0.22:
        question = question.rstrip(".?!")
    elif rng.random() < 0.05:
        question = question.rstrip(".?!") + rng.choice(["??", "!", " ?", "...", "?!"])
    if rng.random() < 0.22:
        question = question.lower()
    elif rng.random() < 0.01:
        question = question.upper()
    return typo(rng, question) if rng.random() < 0.08 else question


def normalised(text: str) -> str:
    """The bare words of a question. Two questions with the same ones count as the same question."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def follow_up(rng: random.Random) -> list[Turn]:
    """Two turns of which the second makes sense only after the first."""
    kind = rng.randrange(4)
    if kind == 0:
        (a, city_a, _), (b, city_b, _) = rng.sample(facts.CAPITALS, 2)
        second = rng.choice(["And of {b}?", "And {b}?", "What about {b}?", "And what is the capital of {b}?", "How about {b}?"]).format(b=b)
        return [(f"What is the capital of {a}?", f"The capital of {a} is {city_a}."), (second, f"The capital of {b} is {city_b}.")]
    if kind == 1:
        name, plural, what, food, home, _, fact = rng.choice(facts.ANIMALS)
        one = article(name)
        second = rng.choice([("What does it eat?", f"{one.capitalize()} eats {food}."), ("Where does it live?", f"{one.capitalize()} lives {home}."),
                             ("And where does it live?", f"{one.capitalize()} lives {home}."), ("Tell me more.", fact), ("Tell me more about it.", fact)])
        first = rng.choice([f"What is {one}?", f"Tell me about {plural}.", f"Tell me about the {name}."])
        return [(first, f"{one.capitalize()} is {what}. It eats {food}. {fact}"), second]
    if kind == 2:
        jokes = next(answers for questions, answers in SMALL_TALK if "Tell me a joke" in questions)
        first, second = rng.sample(jokes, 2)
        again = rng.choice(["Another one", "Another one, please", "One more", "Tell me another one", "Haha, another one!", "More"])
        return [(rng.choice(["Tell me a joke", "Do you know a joke?", "Tell me a joke please."]), first), (again, second)]
    first = ABOUT[0][1][0]
    second = ABOUT[1] if rng.random() < 0.5 else ABOUT[2]
    asks = ["How does it work?", "How does that work?", "And how does it work?", "Explain how."] if second is ABOUT[1] else [
        "Why is that useful?", "What is it good for?", "Why is it useful?", "Why do we need it?"]
    return [(rng.choice(ABOUT[0][0]), first), (rng.choice(asks), rng.choice(second[1]))]


def dialogue(rng: random.Random, held_out: set[str], shares: list = SOURCES) -> Dialogue:
    """One conversation of one to three turns, no question of which is in the held-out set."""
    sources, weights = zip(*shares)
    if rng.random() < 0.06:
        turns = follow_up(rng)
    else:
        turns = [source(rng) for source in rng.choices(sources, weights, k=rng.choices([1, 2, 3], [80, 15, 5])[0])]
    result: Dialogue = []
    if rng.random() < 0.08:
        result.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for question, answer in turns:
        asked = vary(rng, question)
        if normalised(asked) in held_out:
            return dialogue(rng, held_out, shares)
        result += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return result


def dialogues(seed: int, held_out: set[str], shares: list = SOURCES):
    """An endless stream of conversations."""
    rng = random.Random(seed)
    while True:
        yield dialogue(rng, held_out, shares)
