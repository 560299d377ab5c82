"""Hand-written explanations, advice, lists and poems, in the form that dialogues.py describes."""

from dialogues import blocks

EXPLANATIONS = blocks("""
Q Why is the sky blue? | Why does the sky look blue? | Explain why the sky is blue. | What makes the sky blue? | How come the sky is blue?
A The light of the Sun is made of many colours. The air scatters blue light more than red light, so blue light reaches us from all sides and the sky looks blue.
Q Why is the grass green? | Why are leaves green? | Why are plants green? | What makes grass green?
A Plants are green because of a green substance in their leaves. With it they catch sunlight and turn it into food.
Q Why is the sea salty? | Why is the ocean salty? | Why is sea water salty? | Where does the salt in the sea come from?
A Rivers carry tiny bits of salt from the rocks into the sea. The water rises again as vapour, but the salt stays behind.
Q Why does it rain? | How does rain form? | Where does rain come from? | What causes rain? | How does rain work?
A The Sun warms the water, and some of it rises as vapour. High up it cools and forms clouds of small drops. When the drops get too heavy, they fall as rain.
Q Why do leaves fall in autumn? | Why do trees lose their leaves? | Why do leaves change colour?
A In autumn there is less light, so trees stop making the green substance in their leaves. The leaves turn yellow and red, and then they fall. This helps the tree to save water in winter.
Q Why do we sleep? | Why do people sleep? | Why is sleep important? | Why do I need sleep?
A We sleep so that the body and the brain can rest. While we sleep, the brain sorts what we learned during the day.
Q Why do birds sing? | Why do birds sing in the morning? | What makes birds sing?
A Birds sing to find a partner and to tell other birds that this place is theirs.
Q Why do cats purr? | Why does my cat purr? | What makes a cat purr?
A Cats often purr when they are happy and calm. Sometimes they also purr to comfort themselves.
Q Why do dogs bark? | Why does my dog bark? | What makes dogs bark?
A Dogs bark to warn others, to greet people or to ask for something.
Q Why is ice slippery? | Why does ice float? | Why does ice float on water?
A Ice is lighter than water of the same size, so it floats. A very thin layer of water on top makes it slippery.
Q Why do we have seasons? | What causes the seasons? | Why is it cold in winter? | Why is it warm in summer?
A The Earth is tilted as it travels around the Sun. In summer our side leans toward the Sun and gets more light, and in winter it leans away.
Q Why is there day and night? | Why does it get dark at night? | What causes day and night? | Why does the sun rise?
A The Earth turns around once a day. When our side faces the Sun, it is day, and when it faces away, it is night.
Q How do planes fly? | How does a plane fly? | Why do planes stay in the air? | How can an airplane fly?
A The engines push the plane forward. The wings are shaped so that the moving air lifts them up, and so the plane stays in the air.
Q How do fish breathe? | How can fish breathe under water? | How does a fish breathe?
A Fish breathe with gills. Water flows through the gills, and they take the oxygen out of it.
Q How do birds fly? | How can birds fly? | Why can birds fly?
A Birds have light bones, strong muscles and wings with feathers. When they beat their wings, the air lifts them up.
Q How do plants grow? | How does a plant grow? | What do plants need? | How does a seed grow? | What does a plant need to grow?
A A plant grows from a seed. It needs water, light, air and good soil. Its roots drink water, and its leaves make food from sunlight.
Q How do bees make honey? | How is honey made? | Where does honey come from?
A Bees collect sweet nectar from flowers and carry it to the hive. There they dry it until it becomes thick, golden honey.
Q How does a computer work? | How do computers work? | Explain how a computer works.
A A computer follows instructions one by one. Its processor does the calculations, its memory keeps the data, and the screen shows the result.
Q How does the internet work? | How do computers talk to each other? | Explain how the internet works.
A Computers on the internet cut their messages into small packets. The packets travel over cables and radio from machine to machine until they arrive, and there they are put together again.
Q How do magnets work? | Why do magnets stick? | How does a magnet work?
A A magnet has two ends, called poles. Equal poles push each other away, and different poles pull each other together. A magnet also pulls iron.
Q How is bread made? | How is bread baked? | What is bread made of?
A Bread is made from flour, water, yeast and a little salt. The dough rests until it grows, and then it is baked in a hot oven.
Q What causes the tides? | Why are there tides? | Why does the sea rise and fall?
A The Moon pulls on the water of the sea. As the Earth turns, the water rises and falls about twice a day.
Q What is the largest animal? | What is the biggest animal? | Which animal is the largest? | What is the biggest animal in the world?
A The blue whale is the largest animal in the world.
Q What is the fastest animal? | Which animal is the fastest? | What is the fastest land animal?
A The cheetah is the fastest animal on land, and the falcon is the fastest bird.
Q What is the tallest animal? | Which animal is the tallest? | What is the tallest animal in the world?
A The giraffe is the tallest animal in the world.
Q What is the highest mountain? | What is the tallest mountain in the world? | Which mountain is the highest?
A Mount Everest is the highest mountain in the world.
Q What is the largest ocean? | What is the biggest ocean? | Which ocean is the largest?
A The Pacific Ocean is the largest ocean in the world.
Q What is the largest country? | What is the biggest country in the world? | Which country is the largest?
A Russia is the largest country in the world.
Q What is the smallest country? | Which country is the smallest? | What is the smallest country in the world?
A Vatican City is the smallest country in the world.
Q What is the largest planet? | What is the biggest planet? | Which planet is the largest?
A Jupiter is the largest planet of our solar system.
Q Which planet is closest to the Sun? | What is the closest planet to the Sun? | What is the smallest planet?
A Mercury is the smallest planet and the closest to the Sun.
Q Which planet is the hottest? | What is the hottest planet?
A Venus is the hottest planet, because of its thick air.
Q Which planet is called the red planet? | What is the red planet?
A Mars is called the red planet because of its rusty soil.
Q How far away is the Sun? | How far is the Sun? | How far is the Moon? | How far away is the Moon?
A The Moon is about 384 thousand kilometres away, and the Sun about 150 million kilometres.
Q At what temperature does water boil? | When does water boil? | When does water freeze? | At what temperature does water freeze?
A Water freezes at zero degrees Celsius and boils at one hundred degrees.
Q What is water made of? | What is H2O? | What is the formula of water?
A Water is made of hydrogen and oxygen. Its formula is H2O.
Q How do I make tea? | How do you make tea? | How can I make a cup of tea? | Tell me how to make tea. | How to make tea? | How do I make a good cup of tea? | Explain how to make tea.
A Boil fresh water, put a tea bag into a cup and pour the water over it. Wait for three to five minutes, take the bag out, and add milk or sugar if you like.
Q How do I make coffee? | How to make coffee? | Tell me how to make coffee. | How can I make coffee?
A Put ground coffee into a filter, pour hot water over it slowly and let it drip. Drink it black or with a little milk.
Q How do I boil an egg? | How to boil an egg? | How long should I boil an egg? | Tell me how to cook an egg.
A Put the egg into boiling water. After six minutes it is soft, and after ten minutes it is hard. Then cool it under cold water.
Q How do I make soup? | How to make soup? | Tell me how to cook soup. | Do you have a recipe for soup?
A Cut carrots, onions and potatoes into small pieces. Cook them in water with a little salt for twenty minutes, and add some herbs at the end.
Q How do I bake a cake? | How to bake a cake? | Tell me how to make a cake. | Do you have a recipe for a cake?
A Mix flour, sugar, eggs, butter and a little baking powder. Pour the dough into a form and bake it for about forty minutes.
Q How do I make a sandwich? | How to make a sandwich? | Tell me how to make a sandwich.
A Take two slices of bread. Put butter, cheese, tomato and some lettuce on one of them, and lay the other one on top.
Q How can I sleep better? | How do I fall asleep? | I cannot sleep | What helps me to sleep? | How can I fall asleep?
A Go to bed at the same time every day, keep the room dark and cool, and leave your phone in another room.
Q How can I learn faster? | How do I learn better? | How should I study? | How can I learn something new? | How can I study well?
A Learn a little every day, explain it in your own words and take short breaks. Practice helps more than reading.
Q How can I stay healthy? | How do I stay healthy? | What is healthy? | How can I live a healthy life?
A Eat fruit and vegetables, drink water, move every day and sleep enough. And laugh as often as you can.
Q How can I make friends? | How do I make a friend? | How do I find friends?
A Be friendly, listen well and ask questions. Friends are often found where people do something together.
Q How do I learn to program? | How can I learn to code? | How do I become a programmer? | How to start with programming?
A Begin with a small project that you like. Write a few lines, run them, read the errors and change things until they work.
Q How do I plant a tree? | How to plant a tree? | How do I grow flowers? | How do I plant a seed?
A Dig a hole, put the plant or the seed in, fill it with soil and give it water. Then be patient and water it often.
Q How do I feed a cat? | How do I care for a cat? | How should I look after a cat?
A Give the cat fresh water and good food every day, keep its box clean, and play with it often.
Q How do I care for a dog? | How should I look after a dog? | How do I feed a dog?
A A dog needs good food, fresh water, long walks and much love. Train it with patience.
Q How can I be happy? | How do I become happy? | What makes people happy?
A Spend time with people you love, do things that matter to you, and be thankful for small joys.
Q Give me a list of fruits | List some fruits | Name some fruits | Name three fruits. | Tell me some fruits
A Here are some fruits:\\n- apple\\n- banana\\n- cherry\\n- orange\\n- pear
Q List some vegetables | Name some vegetables | Name three vegetables. | Give me a list of vegetables
A Here are some vegetables:\\n- carrot\\n- potato\\n- onion\\n- cabbage\\n- spinach
Q List some animals | Name some animals | Name three animals. | Give me a list of animals
A Here are some animals:\\n- fox\\n- owl\\n- dolphin\\n- bear\\n- rabbit
Q List some colours | Name some colours | Name three colours. | What colours are there? | What are the colours of the rainbow? | Name the colours of the rainbow.
A The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.
Q List the planets | Name the planets | What are the planets? | Name all planets. | Which planets are there? | List the planets in order
A The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.
Q List the days of the week | What are the days of the week? | Name the days of the week
A The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.
Q List the months | What are the months of the year? | Name the months of the year
A The months are January, February, March, April, May, June, July, August, September, October, November and December.
Q What are the continents? | Name the continents. | List the continents
A The continents are Africa, Antarctica, Asia, Australia, Europe, North America and South America.
Q What are the seasons? | Name the four seasons. | List the seasons
A The four seasons are spring, summer, autumn and winter.
Q What are the oceans? | Name the oceans. | List the oceans
A The oceans are the Pacific, the Atlantic, the Indian, the Southern and the Arctic Ocean.
Q Name some sports | List some sports | Name three sports.
A Here are some sports:\\n- football\\n- tennis\\n- swimming\\n- running\\n- cycling
Q Name some instruments | List some musical instruments | Name three instruments.
A Here are some instruments:\\n- piano\\n- violin\\n- flute\\n- guitar\\n- drum
Q Count to five | Count from one to five | Can you count to five?
A One, two, three, four, five.
Q Count to ten | Count from one to ten | Can you count? | Can you count to ten?
A One, two, three, four, five, six, seven, eight, nine, ten.
Q Say the alphabet | What is the alphabet? | Tell me the alphabet
A The alphabet is: A B C D E F G H I J K L M N O P Q R S T U V W X Y Z.
""")

POEMS = blocks("""
Q Write a poem | Write me a poem. | Tell me a poem | Can you write a poem? | A poem please | Do you know a poem? | Write a short poem
A The morning comes, the birds awake,\\nthe sun shines softly on the lake.\\nA gentle wind goes through the tree\\nand sings a little song for me.
A A little star looked down at night\\nand gave the sleeping world its light.\\nIt was so small, it was so far,\\nand yet it was a shining star.
Q Write a poem about the sea | Tell me a poem about the sea | A poem about the ocean | Write a poem about dolphins | A poem about a dolphin
A The sea is deep, the sea is wide,\\nthe dolphins travel with the tide.\\nThey leap and sing, they dive and play,\\nand help each other on their way.
Q Write a poem about winter | A poem about snow | Tell me a poem about winter | Write a poem about snow
A The snow falls softly, white and deep,\\nthe forest rests, the flowers sleep.\\nBut under ice the waters sing\\nand quietly they wait for spring.
Q Write a poem about spring | A poem about flowers | Write a poem about a flower | Tell me a poem about spring
A The snow is gone, the days grow long,\\nthe blackbird tries a brand new song.\\nA flower opens, small and bright,\\nand turns its face toward the light.
Q Write a poem about a cat | A poem about my cat | Tell me a poem about cats | Write a poem about cats
A My cat lies sleeping in the sun,\\nher dreams are full of play and fun.\\nAnd when she wakes, she stretches long\\nand purrs for me her quiet song.
Q Write a poem about love | A love poem | Tell me a poem about love | Write a poem about friendship | A poem about a friend
A A friend is like a lamp at night\\nthat fills a little room with light.\\nAnd when the road is dark and long,\\na friend will sing with you a song.
Q Write a poem about the moon | A poem about the night | Tell me a poem about the moon | Write a poem about the night
A The moon climbs slowly over the hill,\\nthe fields are silver, the trees are still.\\nGood night, small house, good night, old tree,\\nthe moon will watch for you and me.
Q Write a poem about rain | A poem about the rain | Tell me a poem about rain
A The rain is drumming on the stones\\nin quick and light and merry tones.\\nIt fills the brook, it wakes the seed\\nand gives to all the drink they need.
Q Write a poem about computers | A poem about a computer | Write a poem about Dolphin | Write a poem about a network
A One small machine is weak alone,\\nit cannot carry every stone.\\nBut many small ones, side by side,\\ncan lift the load and share the ride.
""")
