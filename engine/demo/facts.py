"""Small tables of facts from which corpus.py builds questions and answers.

Each table is kept as plain text, one record a line, because that is the easiest form to read and to extend.
"""


def rows(text: str) -> list[list[str]]:
    """Split a table into records of fields; a bar separates fields."""
    return [[field.strip() for field in line.split("|")] for line in text.strip().splitlines()]


# country | capital | continent
CAPITALS = rows("""
France | Paris | Europe
Spain | Madrid | Europe
Italy | Rome | Europe
Germany | Berlin | Europe
Portugal | Lisbon | Europe
Greece | Athens | Europe
Austria | Vienna | Europe
Poland | Warsaw | Europe
Norway | Oslo | Europe
Sweden | Stockholm | Europe
Finland | Helsinki | Europe
Denmark | Copenhagen | Europe
Ireland | Dublin | Europe
England | London | Europe
the United Kingdom | London | Europe
Scotland | Edinburgh | Europe
Belgium | Brussels | Europe
the Netherlands | Amsterdam | Europe
Switzerland | Bern | Europe
Hungary | Budapest | Europe
Iceland | Reykjavik | Europe
Ukraine | Kyiv | Europe
Turkey | Ankara | Europe and Asia
Russia | Moscow | Europe and Asia
Japan | Tokyo | Asia
China | Beijing | Asia
India | New Delhi | Asia
Thailand | Bangkok | Asia
Vietnam | Hanoi | Asia
South Korea | Seoul | Asia
Egypt | Cairo | Africa
Kenya | Nairobi | Africa
Morocco | Rabat | Africa
Ghana | Accra | Africa
Ethiopia | Addis Ababa | Africa
Canada | Ottawa | North America
the United States | Washington | North America
Mexico | Mexico City | North America
Cuba | Havana | North America
Brazil | Brasilia | South America
Argentina | Buenos Aires | South America
Chile | Santiago | South America
Peru | Lima | South America
Australia | Canberra | Australia
New Zealand | Wellington | Oceania
""")

# animal | plural | what it is | what it eats | where it lives | sound it makes | one more fact
ANIMALS = rows("""
fox | foxes | a small wild animal with red fur and a bushy tail | mice, berries and insects | in a den in the woods | barks | A fox can hear a mouse under the snow.
cat | cats | a small furry animal that many people keep as a pet | meat and fish | in houses and gardens | meows | A cat sleeps for most of the day.
dog | dogs | a friendly animal and a faithful companion of people | meat and dog food | with people in their homes | barks | A dog can smell far better than a person can.
cow | cows | a large farm animal that gives us milk | grass and hay | on a farm | moos | A cow has a stomach with four parts.
horse | horses | a large strong animal that people can ride | grass, hay and oats | in fields and stables | neighs | A horse can sleep standing up.
sheep | sheep | a farm animal with a thick coat of wool | grass | on farms and hills | says baa | The wool of a sheep keeps us warm in winter.
pig | pigs | a clever farm animal with a flat nose | roots, fruit and grain | on a farm | oinks | A pig rolls in mud to stay cool.
duck | ducks | a water bird with webbed feet | plants, insects and snails | on ponds and rivers | quacks | The feathers of a duck do not get wet.
hen | hens | a female chicken that lays eggs | seeds and worms | in a coop on a farm | clucks | A hen can lay almost one egg a day.
owl | owls | a night bird with large eyes | mice and other small animals | in trees and old barns | hoots | An owl can turn its head very far around.
lion | lions | a big wild cat | meat | on the plains of Africa | roars | A family of lions is called a pride.
tiger | tigers | a big wild cat with black stripes | meat | in the forests of Asia | roars | Every tiger has its own pattern of stripes.
elephant | elephants | the largest land animal, with a long trunk | grass, leaves and fruit | in Africa and Asia | trumpets | An elephant uses its trunk like a hand.
giraffe | giraffes | the tallest animal in the world | leaves from high trees | on the plains of Africa | hums | A giraffe has a very long blue tongue.
bear | bears | a large strong animal with thick fur | fish, berries and honey | in forests and mountains | growls | Many bears sleep through the winter.
wolf | wolves | a wild animal that looks like a large dog | deer and other animals | in forests, in a group called a pack | howls | A wolf howls to call its pack.
rabbit | rabbits | a small animal with long ears | grass, leaves and carrots | in a burrow under the ground | squeaks | A rabbit thumps its foot to warn others.
mouse | mice | a very small animal with a long tail | seeds and crumbs | in fields and in holes in walls | squeaks | A mouse can slip through a tiny hole.
frog | frogs | a small animal that jumps well | flies and other insects | in and near ponds | croaks | A frog begins its life as a tadpole.
snake | snakes | a long animal without legs | mice, frogs and eggs | in grass, sand and forests | hisses | A snake smells with its tongue.
dolphin | dolphins | a clever sea animal that breathes air | fish and squid | in the sea | clicks and whistles | Dolphins live in groups called pods and help one another.
whale | whales | the largest animal in the sea | fish and tiny sea animals | in the ocean | sings | The blue whale is the largest animal that has ever lived.
shark | sharks | a large fish with many sharp teeth | fish and seals | in the ocean | makes no sound | A shark grows new teeth all its life.
octopus | octopuses | a soft sea animal with eight arms | crabs and shellfish | on the bottom of the sea | makes no sound | An octopus has three hearts.
penguin | penguins | a black and white bird that swims but cannot fly | fish and krill | in the cold south | honks | A father penguin keeps the egg warm on his feet.
bee | bees | a small insect that makes honey | nectar and pollen | in a hive | buzzes | Bees help flowers to make seeds.
spider | spiders | a small animal with eight legs | insects | in webs and quiet corners | makes no sound | A spider makes its web from silk.
butterfly | butterflies | an insect with colourful wings | nectar from flowers | in gardens and meadows | makes no sound | A butterfly starts its life as a caterpillar.
monkey | monkeys | a clever animal that climbs trees | fruit, leaves and nuts | in warm forests | chatters | Monkeys like to play and to groom one another.
kangaroo | kangaroos | a jumping animal with a pouch | grass and leaves | in Australia | grunts | A baby kangaroo is called a joey.
squirrel | squirrels | a small animal with a bushy tail | nuts and seeds | in trees | chatters | A squirrel hides nuts for the winter.
turtle | turtles | a slow animal with a hard shell | plants and small fish | in the sea and in ponds | makes no sound | Some turtles live for more than a hundred years.
hedgehog | hedgehogs | a small animal covered in spines | insects, worms and snails | in gardens and hedges | snuffles | A hedgehog rolls into a ball when it is afraid.
goat | goats | a farm animal with horns that climbs well | grass, leaves and twigs | on farms and mountains | bleats | A goat can climb very steep rocks.
camel | camels | a desert animal with a hump | dry grass and thorny plants | in the desert | grunts | A camel stores fat in its hump.
""")

# plural or mass thing | verb | colour
COLOURS = rows("""
the sky | is | blue
grass | is | green
the sun | is | yellow
snow | is | white
a banana | is | yellow
a lemon | is | yellow
a strawberry | is | red
a tomato | is | red
a carrot | is | orange
an orange | is | orange
coal | is | black
the night sky | is | black
chocolate | is | brown
milk | is | white
blood | is | red
a frog | is | green
a polar bear | is | white
a flamingo | is | pink
a pig | is | pink
a leaf | is | green
the sea | is | blue
an elephant | is | grey
a fire engine | is | red
a cloud | is | white
a dolphin | is | grey
""")

# planet | place in order | fact
PLANETS = rows("""
Mercury | first | It is the smallest planet and the closest to the Sun.
Venus | second | It is the hottest planet because of its thick air.
Earth | third | It is our home and the only planet known to have life.
Mars | fourth | It is called the red planet because of its rusty soil.
Jupiter | fifth | It is the largest planet and has a great red storm.
Saturn | sixth | It is famous for its bright rings of ice and rock.
Uranus | seventh | It is a cold planet that lies on its side.
Neptune | eighth | It is the farthest planet from the Sun and very windy.
""")

OPPOSITES = [pair.split("/") for pair in (
    "hot/cold big/small up/down day/night happy/sad fast/slow light/dark good/bad old/new young/old tall/short "
    "hard/soft wet/dry open/closed full/empty loud/quiet left/right early/late near/far rich/poor strong/weak "
    "high/low in/out black/white clean/dirty easy/difficult first/last heavy/light long/short thick/thin "
    "true/false win/lose push/pull start/stop buy/sell give/take love/hate remember/forget sweet/sour wide/narrow "
    "asleep/awake brave/afraid deep/shallow sharp/blunt north/south east/west summer/winter inside/outside yes/no"
).split()]

PLURALS = [pair.split("/") for pair in (
    "mouse/mice child/children foot/feet tooth/teeth goose/geese man/men woman/women person/people sheep/sheep "
    "fish/fish leaf/leaves wolf/wolves knife/knives box/boxes fox/foxes city/cities baby/babies cat/cats dog/dogs "
    "house/houses book/books bus/buses potato/potatoes tomato/tomatoes ox/oxen wife/wives shelf/shelves story/stories "
    "cherry/cherries tree/trees"
).split()]

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBER_WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
                "seventeen eighteen nineteen twenty").split()

# how many | of what, in what | sentence
COUNTS = rows("""
legs does a spider have | A spider has eight legs.
legs does a dog have | A dog has four legs.
legs does a cat have | A cat has four legs.
legs does a bird have | A bird has two legs.
legs does an insect have | An insect has six legs.
arms does an octopus have | An octopus has eight arms.
days are in a week | There are seven days in a week.
days are in a year | There are 365 days in a year, and 366 in a leap year.
months are in a year | There are twelve months in a year.
hours are in a day | There are 24 hours in a day.
minutes are in an hour | There are 60 minutes in an hour.
seconds are in a minute | There are 60 seconds in a minute.
weeks are in a year | There are 52 weeks in a year.
seasons are there | There are four seasons: spring, summer, autumn and winter.
planets are there | There are eight planets that travel around our Sun.
continents are there | There are seven continents.
letters are in the alphabet | There are 26 letters in the English alphabet.
colours are in a rainbow | A rainbow has seven colours.
sides does a triangle have | A triangle has three sides.
sides does a square have | A square has four equal sides.
wheels does a car have | A car has four wheels.
wheels does a bicycle have | A bicycle has two wheels.
fingers do I have | Most people have ten fingers, counting the thumbs.
moons does Earth have | Earth has one moon.
strings does a violin have | A violin has four strings.
""")

# term | definition
DEFINITIONS = rows("""
a computer | A computer is a machine that follows instructions to work with information.
a program | A program is a list of instructions that tells a computer what to do.
a robot | A robot is a machine that can move and do work on its own.
the internet | The internet is a worldwide network of computers that exchange messages.
a GPU | A GPU is a chip that does many small calculations at the same time. It is good at running language models.
a CPU | A CPU is the main chip of a computer. It carries out the instructions of programs.
a language model | A language model is a program that learned from text to predict the next word. By doing so again and again, it can answer questions.
a neural network | A neural network is a program made of many simple units in layers. It learns by adjusting the numbers that connect them.
a token | A token is a small piece of text, such as a word or a part of a word. A language model reads and writes tokens.
a node | A node is one computer in a network. In Dolphin, each node holds a few layers of the model.
a layer | A layer is one step of a neural network. Each layer takes numbers in, changes them a little and hands them to the next layer.
a pipeline | A pipeline is a row of stages in which each stage does its part and hands the result to the next one.
a prompt | A prompt is the text that you give to a language model so that it can reply.
open source | Open source means that everyone may read, use and improve the source code.
encryption | Encryption turns a message into a secret form that only the right key can open.
a proof | A proof is a chain of steps that shows that something is true.
a hash | A hash is a short fingerprint of some data. If the data changes, the hash changes too.
a river | A river is a large stream of water that flows to the sea or to a lake.
a mountain | A mountain is a very high piece of land, much higher than a hill.
an island | An island is a piece of land with water all around it.
a volcano | A volcano is a mountain from which hot melted rock can burst out.
a desert | A desert is a very dry place where little rain falls.
a forest | A forest is a large area full of trees.
the sun | The Sun is a star. It gives us light and warmth.
the moon | The Moon is a ball of rock that travels around the Earth.
a star | A star is a huge ball of hot gas that shines.
a planet | A planet is a large round body that travels around a star.
gravity | Gravity is the force that pulls things toward each other. It keeps us on the ground.
energy | Energy is what makes things move, shine or become warm.
electricity | Electricity is the flow of tiny charges through a wire. It powers lamps and machines.
water | Water is a clear liquid that all living things need.
ice | Ice is frozen water. It melts when it gets warm.
rain | Rain is water that falls from the clouds in drops.
a rainbow | A rainbow is a band of colours that appears when sunlight shines through rain.
a poem | A poem is a short text that plays with sound and feeling, often in rhymes.
a story | A story tells what happened to someone, with a beginning, a middle and an end.
music | Music is sound arranged in a way that is pleasant or moving.
a friend | A friend is someone who likes you, helps you and is happy to see you.
love | Love is a deep and warm feeling for someone or something.
kindness | Kindness means being gentle and helpful to others.
courage | Courage means doing the right thing even when you are afraid.
happiness | Happiness is the warm feeling of being glad about your life.
honesty | Honesty means telling the truth.
science | Science is the careful study of how the world works.
mathematics | Mathematics is the study of numbers, shapes and patterns.
history | History is the study of what happened in the past.
a library | A library is a place where you can read and borrow books.
a doctor | A doctor is a person who helps sick people to get well.
a teacher | A teacher is a person who helps others to learn.
a farmer | A farmer is a person who grows food and keeps animals.
a baker | A baker is a person who makes bread and cakes.
bread | Bread is a food made from flour, water and yeast, baked in an oven.
cheese | Cheese is a food made from milk.
honey | Honey is a sweet food that bees make from nectar.
a seed | A seed is the small part of a plant from which a new plant grows.
a vegetable | A vegetable is a plant or a part of a plant that we eat, such as a carrot.
a fruit | A fruit is the part of a plant that holds the seeds, such as an apple.
a circle | A circle is a round shape. Every point on it is equally far from the centre.
a triangle | A triangle is a shape with three sides and three corners.
a clock | A clock is a device that shows the time.
a bicycle | A bicycle is a vehicle with two wheels that you move with pedals.
""")
