"""Short stories with a moral: a hero, a place and one of several plots.

Every hero has one fixed name and pronoun. That keeps the small model consistent within a story.
"""

import random

from facts import rows

# hero | name | pronoun | possessive | place
HEROES = rows("""
a fox | Rusty | he | his | in a green forest
a cat | Mimi | she | her | in a small house by the river
a dog | Bruno | he | his | on a quiet farm
a rabbit | Clover | she | her | at the edge of a meadow
a bear | Bodo | he | his | in a deep forest
a mouse | Pip | he | his | under an old barn
an owl | Olga | she | her | in a tall oak tree
a dolphin | Delfi | she | her | in the warm blue sea
a hedgehog | Spike | he | his | in a wild garden
a squirrel | Hazel | she | her | high up in a beech tree
a wolf | Grey | he | his | in the northern hills
a lion | Leo | he | his | on the wide plains
an elephant | Ella | she | her | near a great lake
a duck | Daisy | she | her | on a little pond
a frog | Fredo | he | his | beside a muddy pond
a turtle | Tilo | he | his | on a sunny beach
a penguin | Polly | she | her | in the land of ice
a monkey | Momo | he | his | in a warm jungle
a horse | Star | she | her | in a wide green field
a bird | Tilly | she | her | in an old apple tree
a bee | Bella | she | her | in a golden hive
a dragon | Ember | he | his | in a cave in the mountains
a robot | Bolt | he | his | in a busy workshop
a whale | Wanda | she | her | in the deep ocean
a girl | Lily | she | her | in a village by the sea
a boy | Tom | he | his | in a village by the hills
a princess | Rosa | she | her | in a castle on a hill
a king | Otto | he | his | in a castle by a river
a farmer | Anna | she | her | on a small farm
a sailor | Jack | he | his | in a harbour town
""")

PLOTS = [
    "One day {name} found a shiny key on the path. {He} asked everyone whose key it was. At last an old {friend} "
    "began to cry with joy, because it was the key to {pos2} home. {name} gave it back, and the {friend} shared a warm "
    "supper with {obj}. From that day on they were friends.\nThe moral: honesty brings good friends.",
    "One cold winter {name} had only a little food left. Then a hungry {friend} knocked at the door. {name} thought for "
    "a moment and shared {his} last meal. In spring the {friend} came back with a basket full of berries, and they ate "
    "together in the sun.\nThe moral: what you give comes back to you.",
    "{name} wanted to cross the river, but {he} was afraid of the water. Every day {he} took one small step more. A "
    "friendly {friend} stood on the other side and called {his} name. After a week {name} reached the other side and "
    "laughed with joy.\nThe moral: small steps lead far.",
    "One night a great storm came. A young {friend} had lost the way home and called for help. {name} was afraid of the "
    "dark, but {he} took a lamp and went out. {He} found the {friend} under a tree and brought {obj2} home.\n"
    "The moral: to be brave is to help even when you are afraid.",
    "{name} liked to say that {he} was faster than everyone. So a slow {friend} asked {obj} for a race. {name} ran ahead "
    "and then lay down for a nap. When {he} woke up, the {friend} had already reached the goal. {name} said sorry and "
    "never boasted again.\nThe moral: slow and steady wins the race.",
    "One morning a large stone lay on the road. {name} pushed and pushed, but it did not move. Then {he} asked a "
    "{friend} for help, and the {friend} called all the others. Together they pushed once, and the stone rolled away.\n"
    "The moral: together we are strong.",
    "{name} planted a small seed and waited. The next day there was nothing to see, and a {friend} laughed at {obj}. But "
    "{name} gave it water every day. In summer a tall sunflower stood there, and even the {friend} came to look at it.\n"
    "The moral: be patient, and good things will grow.",
    "One day {name} broke the favourite cup of a {friend}. First {he} wanted to hide it, but {his} heart felt heavy. So "
    "{he} told the truth and said sorry. The {friend} smiled and said that a true word was worth more than a cup.\n"
    "The moral: telling the truth makes the heart light.",
    "{name} dreamed of touching the moon. {He} climbed the highest hill and reached up, but the moon was still far "
    "away. A wise {friend} pointed at the lake below, where the moon was shining on the water. {name} touched it gently "
    "and went home happy.\nThe moral: sometimes what we look for is very near.",
]

FRIENDS = [("rabbit", "she"), ("owl", "he"), ("badger", "he"), ("mole", "he"), ("goose", "she"), ("deer", "she"),
           ("hen", "she"), ("crow", "he"), ("goat", "she")]

OPENINGS = [
    "Once upon a time there was {hero} named {name}, who lived {place}.",
    "Once upon a time, {hero} named {name} lived {place}.",
    "There once was {hero} called {name}, who lived {place}.",
]

QUESTIONS = [
    "Tell me a story about {hero}.", "Write a story about {hero}.", "Can you tell me a story about {hero}?",
    "A story about {hero}, please.", "I want to hear a story about {hero}.", "Tell me a short story about {hero}.",
    "Write me a short story about {hero}.", "Please write a little story about {hero}.", "Story about {hero}",
    "Tell a tale about {hero}.", "Give me a story about {hero}", "Could you write a story about {hero}?",
    "Make up a story about {hero}.", "Tell me about {hero} in a story.", "I would like a story about {hero}.",
    "Do you know a story about {hero}?",
]

OPEN_QUESTIONS = [
    "Tell me a story.", "Tell me a short story.", "Write a story.", "Can you tell me a story?", "I want to hear a story.",
    "Story please", "Do you know a story?", "Tell me a bedtime story.", "Once upon a time", "Write me a story.",
    "Tell me a tale.", "Tell me a fairy tale.", "Another story", "Tell me another story.", "Write a short story for me.",
    "Please tell a story", "Read me a story.", "A story with a moral, please.", "Tell a story to my child.",
]


def story(rng: random.Random, hero: list[str]) -> str:
    """Tell one of the plots with this hero."""
    kind, name, he, his, place = hero
    obj = {"he": "him", "she": "her"}
    friend, friend_he = rng.choice([f for f in FRIENDS if f[0] not in kind])
    text = rng.choice(OPENINGS) + " " + rng.choice(PLOTS)
    return text.format(hero=kind.replace(" ", " little ", 1).replace("an little", "a little"), name=name, place=place,
                       he=he, He=he.capitalize(), his=his, obj=obj[he], friend=friend,
                       pos2={"he": "his", "she": "her"}[friend_he], obj2=obj[friend_he])


def story_dialogue(rng: random.Random) -> tuple[str, str]:
    """A request for a story and the story."""
    hero = rng.choice(HEROES)
    if rng.random() < 0.25:
        return rng.choice(OPEN_QUESTIONS), story(rng, hero)
    named = hero[0] if rng.random() < 0.7 else hero[0].replace("a ", "a little ", 1).replace("an ", "a little ", 1)
    return rng.choice(QUESTIONS).format(hero=named), story(rng, hero)
