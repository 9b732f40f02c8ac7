"""Word lists and phrasings from which data.py builds every conversation.

Only constants live here. It must never contain an answer to a particular sum,
sort or phrase: the templates name the operation, data.py draws the operands.
The lists called *_UNSEEN and *_HELD are never trained on; they are for evaluate.py.
"""

ADD_EN = """{a}+{b}|{a} + {b}|{a}+{b}=|{a}+{b}=?|{a} + {b} =|{a} + {b} = ?|{a}+{b}?|What is {a}+{b}?|What is {a} + {b}?
What is {a} plus {b}?|What's {a} + {b}?|What's {a} plus {b}?|Add {a} and {b}.|Add {a} to {b}.|Add {a} {b}|Compute {a} + {b}.
Compute {a} plus {b}.|Calculate {a} + {b}.|Calculate {a}+{b}|Calculate {a} plus {b}.|Sum {a} and {b}.|Sum of {a} and {b}?
Find the sum of {a} and {b}.|What is the sum of {a} and {b}?|How much is {a} + {b}?|How much is {a} plus {b}?|{a} plus {b}
{a} plus {b}?|{a} plus {b} equals?|{a} plus {b} is what?|{a} and {b} added together?|{a} added to {b}?|Tell me {a} plus {b}.
What do you get when you add {a} and {b}?|I have {a} apples and get {b} more. How many do I have?|Evaluate {a} + {b}.
Work out {a} + {b}.|Solve {a}+{b}.|What does {a} + {b} equal?|Can you add {a} and {b}?|Could you work out {a} plus {b}?
Increase {a} by {b}.|Do you know {a}+{b}?|Give me {a} + {b}.|{a} with {b} added?|Put {a} and {b} together."""
ADD_ZH = """{a}加{b}|{a}加{b}等于几?|{a}加{b}等于多少?|{a}加{b}是多少?|{a}加{b}=?|{a}+{b}等于几?|{a}+{b}等于多少?|{a}+{b}是多少?
{a}+{b}|{a}+{b}=?|{a} + {b} = ?|{a} 加 {b}|计算{a}+{b}。|计算{a}加{b}。|计算 {a} + {b}|请计算{a}+{b}。|请算{a}加{b}。|算一下{a}+{b}。
算一下{a}加{b}。|帮我算{a}+{b}。|帮我算一下{a}加{b}。|求{a}与{b}的和。|求{a}加{b}。|{a}和{b}的和是多少?|{a}与{b}之和是多少?|{a}和{b}加起来是多少?
{a}和{b}一共是多少?|把{a}和{b}相加。|将{a}与{b}相加。|{a}加上{b}是多少?|{a}加上{b}等于几?|{a}再加{b}是多少?|我有{a}个苹果,又买了{b}个,一共几个?|{a}跟{b}加起来等于几?
你知道{a}+{b}等于几吗?|请问{a}加{b}等于多少?|告诉我{a}加{b}。"""
ADD_UNSEEN = """Please take {a} and add {b}.|What would {a} plus {b} be?|Total of {a} and {b}?|请把{a}加上{b}。|请告诉我{a}+{b}的结果。"""

SUB_EN = """{a}-{b}|{a} - {b}|{a}-{b}=|{a}-{b}=?|{a} - {b} =|{a} - {b} = ?|{a}-{b}?|What is {a}-{b}?|What is {a} - {b}?
What is {a} minus {b}?|What's {a} - {b}?|What's {a} minus {b}?|Subtract {b} from {a}.|Subtract {b} from {a}|Take {b} from {a}.
Take {b} away from {a}.|Take away {b} from {a}.|Compute {a} - {b}.|Compute {a} minus {b}.|Calculate {a} - {b}.|Calculate {a}-{b}
Calculate {a} minus {b}.|How much is {a} - {b}?|How much is {a} minus {b}?|{a} minus {b}|{a} minus {b}?|{a} minus {b} equals?
{a} minus {b} is what?|{a} less {b}?|{a} take away {b}?|Tell me {a} minus {b}.|What do you get when you subtract {b} from {a}?
What is left when {b} is taken from {a}?|Evaluate {a} - {b}.|Work out {a} - {b}.|Solve {a}-{b}.|What does {a} - {b} equal?
Can you subtract {b} from {a}?|Could you work out {a} minus {b}?|Decrease {a} by {b}.|Reduce {a} by {b}.|Do you know {a}-{b}?
Give me {a} - {b}.|Find {a} minus {b}.|Remove {b} from {a}.|I had {a} apples and gave away {b}. How many are left?"""
SUB_ZH = """{a}减{b}|{a}减{b}等于几?|{a}减{b}等于多少?|{a}减{b}是多少?|{a}减{b}=?|{a}-{b}等于几?|{a}-{b}等于多少?|{a}-{b}是多少?
{a}-{b}|{a}-{b}=?|{a} - {b} = ?|{a} 减 {b}|计算{a}-{b}。|计算{a}减{b}。|计算 {a} - {b}|请计算{a}-{b}。|请算{a}减{b}。|算一下{a}-{b}。
算一下{a}减{b}。|帮我算{a}-{b}。|帮我算一下{a}减{b}。|求{a}减{b}。|求{a}减去{b}的差。|{a}减去{b}是多少?|{a}减去{b}等于几?|{a}减去{b}
从{a}中减去{b}。|从{a}里减{b}是多少?|从{a}里拿走{b}还剩多少?|我有{a}个苹果,送人{b}个,还剩几个?|{a}少{b}是多少?|{a}去掉{b}是多少?
你知道{a}-{b}等于几吗?|请问{a}减{b}等于多少?|告诉我{a}减{b}。"""
SUB_UNSEEN = """Please take {a} and subtract {b}.|What would {a} minus {b} be?|What is {a} with {b} taken away?|请把{a}减去{b}。|请告诉我{a}-{b}的结果。"""

SORT_EN = """Sort {x}|Sort {x}.|Sort: {x}|Sort these numbers: {x}|Sort these numbers: {x}.|Sort the numbers {x}.|Sort the numbers {x}
Please sort {x}.|Sort the list {x}.|Sort this list: {x}|Sort [{x}]|Order {x}.|Order these numbers: {x}|Put {x} in order.
Put these in order: {x}|Arrange {x}.|Arrange these numbers: {x}|Can you sort {x}?|Could you sort {x} for me?|Sort {x} ascending.
Sort {x} in ascending order.|Sort in ascending order: {x}|Sort ascending: {x}|Sort from smallest to largest: {x}|Sort {x} from small to large.
Order from low to high: {x}|Order {x} from smallest to largest.|Arrange from small to big: {x}|Rank {x} from lowest to highest.
What is {x} sorted?|Give me {x} in order.|{x} sorted|I need {x} sorted."""
SORT_ZH = """排序:{x}|排序{x}|排序 {x}|请排序:{x}|给{x}排序。|给 {x} 排序|请给{x}排序。|把{x}排序。|把{x}排个序。|请把{x}从小到大排列。|把{x}从小到大排序。
从小到大排列:{x}|从小到大排序:{x}|从小到大:{x}|将{x}按从小到大排列。|按升序排列:{x}|升序:{x}|帮我排序:{x}|帮我把{x}排个序。|对{x}进行排序。|对 {x} 排序|请将这些数排序:{x}
把这些数字排序:{x}|这些数从小到大怎么排:{x}"""
DESC_EN = """Sort {x} descending.|Sort {x} in descending order.|Sort descending: {x}|Sort in descending order: {x}|Sort from largest to smallest: {x}
Sort {x} from large to small.|Order from high to low: {x}|Order {x} from largest to smallest.|Sort {x} in reverse order.|Arrange from big to small: {x}
Put {x} in descending order.|Rank {x} from highest to lowest.|Sort backwards: {x}|Sort these numbers in descending order: {x}"""
DESC_ZH = """把{x}从大到小排序。|从大到小排列:{x}|从大到小排序:{x}|从大到小:{x}|请把{x}从大到小排列。|按降序排列:{x}|降序:{x}|将{x}按从大到小排列。|给{x}降序排序。|倒序排列:{x}"""
SORT_UNSEEN = """Help me sort {x}.|Here are some numbers, sort them: {x}|List {x} in ascending order.|请对{x}从小到大排序。|数字排序:{x}"""

REPEAT_EN = """Repeat: {x}|Repeat {q}|Repeat {q}.|Repeat after me: {x}|Repeat this: {x}|Repeat the phrase {q}.|Repeat the phrase: {x}|Repeat the words {q}.
Repeat exactly: {x}|Repeat the following: {x}|Please repeat: {x}|Please repeat {q}.|Say: {x}|Say {q}|Say {q}.|Say {x}|Please say {q}.|Can you say {q}?
Can you repeat {q}?|Could you repeat {q} for me?|Echo: {x}|Echo {x}|Echo {q}|Copy this: {x}|Copy: {x}|Say after me: {x}|Write {q}.|Write: {x}|Type {q}.
Just say {q}.|Repeat {x}|Repeat this sentence: {x}|Say this back to me: {x}|Say the words {q}|Print {q}.|Output {q}."""
REPEAT_ZH = """重复:{x}|重复{q}|重复{q}。|请重复:{x}|请重复{q}。|请重复这句话:{x}|重复这句话:{x}|重复下面的话:{x}|重复一遍:{x}|跟我说:{x}|跟我说{q}|请跟我说:{x}|跟我念:{x}
复述:{x}|请复述:{x}|请复述{q}。|说{q}|说{q}。|请说{q}。|请说:{x}|说:{x}|你能说{q}吗?|你能重复{q}吗?|照着说:{x}|照着写:{x}|请写{q}。|抄写:{x}|念一遍:{x}|重复 {x}|学我说:{x}"""
REPEAT_UNSEEN = """Repeat back to me: {x}|Please copy {q}.|Say exactly this: {x}|请你重复:{x}|请照样说:{x}"""

COUNT_EN = """Count from {a} to {b}.|Count from {a} to {b}|Count {a} to {b}.|Count up from {a} to {b}.|Please count from {a} to {b}.|Can you count from {a} to {b}?
Could you count from {a} to {b}?|List the numbers from {a} to {b}.|List all numbers from {a} to {b}.|Write the numbers from {a} to {b}.|Give me the numbers {a} to {b}.
Say the numbers from {a} to {b}.|Numbers from {a} to {b}|Start at {a} and count to {b}.|Show me {a} to {b}.|Print the numbers from {a} to {b}.|Count: {a} to {b}|Count {a}-{b}"""
COUNT_ZH = """从{a}数到{b}。|从{a}数到{b}|请从{a}数到{b}。|你能从{a}数到{b}吗?|帮我从{a}数到{b}。|列出{a}到{b}的数。|列出从{a}到{b}的数字。|写出{a}到{b}。|写出从{a}到{b}的数字。|说出{a}到{b}的数字。
{a}数到{b}|由{a}数到{b}。|从 {a} 数到 {b}|数数,从{a}到{b}。|从{a}开始数到{b}。"""
COUNT1_EN = """Count to {b}.|Count to {b}|Count up to {b}.|Please count to {b}.|Can you count to {b}?|Can you count up to {b}?|Let's count to {b}."""
COUNT1_ZH = """数到{b}。|数到{b}|请数到{b}。|你能数到{b}吗?|从一数到{b}。|从头数到{b}。"""
DOWN_EN = """Count down from {a} to {b}.|Count down from {a} to {b}|Count backwards from {a} to {b}.|Count backward from {a} to {b}.|Please count down from {a} to {b}.|Countdown from {a} to {b}.
Count from {a} down to {b}.|Count in reverse from {a} to {b}.|Can you count down from {a} to {b}?|Count from {a} to {b}.|List the numbers from {a} down to {b}."""
DOWN_ZH = """从{a}倒数到{b}。|从{a}倒数到{b}|请从{a}倒数到{b}。|从{a}倒着数到{b}。|从{a}往回数到{b}。|倒数,从{a}到{b}。|你能从{a}倒数到{b}吗?|从{a}数到{b}。"""
COUNT_UNSEEN = """Please list every number from {a} to {b}.|Count the numbers {a} to {b}.|Start from {a} and go up to {b}.|请你从{a}数到{b}。|请列出{a}到{b}。"""

ITEMS_EN = """How many items: {x}?|How many items are there: {x}|How many items are in this list: {x}?|How many things are here: {x}?|Count the items: {x}|Count these: {x}
Count the items in this list: {x}|How many words: {x}|How many are there: {x}?|Count how many: {x}|What is the number of items in {x}?|How long is this list: {x}?"""
ITEMS_ZH = """有几个:{x}|这里有几个:{x}?|数一数有几个:{x}|数一数:{x}|一共有几个:{x}?|下面有几项:{x}|这个列表有几项:{x}?|有多少个:{x}?|请数一数有几项:{x}|列表里有几个东西:{x}?"""

JSON_EN = """Give me JSON with {f}.|Give me JSON with {f}|Give me a JSON object with {f}.|Give me a JSON with {f}|JSON with {f}|JSON: {f}|Make JSON with {f}.|Make a JSON object with {f}.
Write JSON with {f}.|Write a JSON object with {f}.|Create JSON with {f}.|Create a JSON object with {f}.|Return JSON with {f}.|Return a JSON object: {f}|Output JSON: {f}|Please give me JSON with {f}.
Can you write JSON with {f}?|I need JSON with {f}.|Build a small JSON with {f}.|Show JSON for {f}.|Turn this into JSON: {f}|Convert to JSON: {f}|To JSON: {f}|As JSON: {f}|Reply in JSON: {f}"""
JSON_ZH = """给我JSON:{f}|给我一个JSON:{f}|给我一个JSON,{f}。|给我一段JSON,{f}。|生成JSON:{f}|生成一个JSON,{f}。|写一个JSON,{f}。|写JSON:{f}|请写一个JSON:{f}|请用JSON表示:{f}|用JSON写:{f}|用JSON写出{f}。
用JSON回答:{f}|转成JSON:{f}|变成JSON:{f}|把{f}写成JSON。|把{f}转成JSON。|请输出JSON:{f}|输出JSON:{f}|帮我写个JSON:{f}|做一个JSON,{f}。|JSON:{f}"""
JSON_UNSEEN = """Please produce a JSON object with {f}.|I would like JSON with {f}.|Format as JSON: {f}|请给我一个JSON:{f}|请把{f}变成JSON。"""
LIST_EN = """JSON list of {x}|Give me a JSON list of {x}.|Give me a JSON array with {x}.|JSON array: {x}|Write a JSON array of {x}.|Make a JSON list with {x}.|Put {x} in a JSON array.|Turn {x} into a JSON list."""
LIST_ZH = """给我一个JSON数组:{x}|JSON数组:{x}|把{x}写成JSON数组。|写一个JSON列表:{x}|用JSON数组表示{x}。|生成JSON数组:{x}"""
SAMPLE_EN = """Give me JSON.|Give me some JSON.|Give me a small JSON.|Give me a JSON example.|Show me a JSON example.|Write a small JSON object.|Write some JSON.|An example of JSON, please.|Give me an example JSON object.|Make me a small JSON.|Show me JSON."""
SAMPLE_ZH = """给我一个JSON。|给我一段JSON。|给我一个小JSON。|写一个JSON。|写个JSON例子。|给个JSON例子。|给我看一个JSON例子。|来一个JSON。|举一个JSON的例子。"""

WHO = {
"id": ("""who are you|what are you|tell me about yourself|introduce yourself|please introduce yourself|what is your name|what's your name|your name|who am i talking to|who am i speaking with
what model are you|which model are you|which model is this|what model is this|are you a bot|are you a robot|are you a human|are you human|are you an ai|are you a real person|are you a person|describe yourself|say something about yourself|who is this
what kind of ai are you|what kind of model are you|what should i call you|do you have a name|are you chatgpt|are you gpt|are you qwen|are you a language model|are you an assistant|name yourself|what do they call you|what are you called|so what are you
who exactly are you|what exactly are you|can you introduce yourself|could you tell me who you are|tell me who you are|tell me what you are|i want to know who you are|do you know who you are|who might you be|may i ask who you are|who made you|who built you|where do you come from|what is this|identify yourself|explain who you are|who is answering me|who is talking|what am i talking to""",
"""你是谁|你是什么|你叫什么|你叫什么名字|你的名字是什么|介绍一下你自己|介绍一下自己|请介绍一下你自己|请自我介绍|自我介绍一下|做个自我介绍|你是机器人吗|你是人吗|你是真人吗|你是人工智能吗|你是什么模型|你是哪个模型|这是什么模型|说说你自己|说一下你自己
我在和谁说话|我在跟谁聊天|我该怎么称呼你|怎么称呼你|你有名字吗|你是什么AI|你是AI吗|你是ChatGPT吗|你是语言模型吗|你是助手吗|告诉我你是谁|我想知道你是谁|请问你是谁|请问你叫什么|你到底是谁|你到底是什么|你究竟是谁|谁在回答我|你从哪里来|谁做了你|谁开发了你|你是什么东西|你是干什么的|讲讲你自己|描述一下你自己|能介绍一下自己吗|能告诉我你是谁吗|你是哪位|您是谁|您叫什么名字"""),
"pagoda": ("""what is pagoda|what's pagoda|tell me about pagoda|explain pagoda|describe pagoda|what does pagoda do|define pagoda|do you know pagoda|do you know what pagoda is|what do you know about pagoda|what kind of software is pagoda|what kind of program is pagoda
what is this pagoda|what is this thing called pagoda|pagoda|what is pagoda for|what is pagoda used for|what does pagoda mean|is pagoda a database|is pagoda a model|is pagoda an engine|is pagoda an inference engine|can you explain pagoda|can you tell me about pagoda|could you describe pagoda|give me a summary of pagoda|summarize pagoda
pagoda, what is it|introduce pagoda|please introduce pagoda|i want to know about pagoda|i have never heard of pagoda|what is the pagoda project|what is the pagoda engine|tell me something about pagoda|say what pagoda is|tell me what pagoda is|why pagoda|what exactly is pagoda|what sort of thing is pagoda|what can pagoda do|what software is this|what engine is this|what server is this|what is serving you|what runs you|which engine are you running on""",
"""什么是Pagoda|Pagoda是什么|介绍一下Pagoda|介绍Pagoda|请介绍Pagoda|请介绍一下Pagoda|说说Pagoda|讲讲Pagoda|解释一下Pagoda|描述一下Pagoda|Pagoda是做什么的|Pagoda是干什么的|Pagoda有什么用|Pagoda能做什么|Pagoda是什么软件|Pagoda是什么东西|Pagoda是什么项目|Pagoda
你知道Pagoda吗|你知道Pagoda是什么吗|你了解Pagoda吗|关于Pagoda你知道什么|Pagoda是数据库吗|Pagoda是模型吗|Pagoda是推理引擎吗|告诉我Pagoda是什么|我想了解Pagoda|我没听说过Pagoda|能介绍一下Pagoda吗|能说说Pagoda吗|Pagoda是什么意思|Pagoda到底是什么|这是什么引擎|这是什么软件|你运行在什么上面|什么引擎在运行你|简单介绍Pagoda|一句话介绍Pagoda"""),
"lang": ("""what language is pagoda written in|which language is pagoda written in|what is pagoda written in|is pagoda written in rust|is pagoda written in python|is pagoda written in c++|what programming language is pagoda|which programming language does pagoda use|what language does pagoda use|in what language is pagoda written|what is pagoda made with|is it written in rust""",
"""Pagoda是用什么语言写的|Pagoda用什么语言写的|Pagoda是用什么写的|Pagoda是用Rust写的吗|Pagoda是用Python写的吗|Pagoda用什么编程语言|Pagoda的编程语言是什么|Pagoda用了什么语言|Pagoda是什么语言写的|Pagoda由什么语言编写|它是用什么语言写的"""),
"can": ("""what can you do|what are you able to do|help|help me|can you help me|how can you help me|what do you do|what are your skills|what are your abilities|what can i ask you|what can i ask|what can i do here|what should i ask you|what do you know|what are you good at|what can you help with|what can you help me with|list your skills|show me what you can do|tell me what you can do|what else can you do|what tasks can you do|what do you know how to do|give me some ideas|what are your features|what is your purpose|how do i use you|what can i try|what should i try|i need help""",
"""你会什么|你会做什么|你能做什么|你能干什么|你可以做什么|你会干什么|你有什么功能|你有什么本领|你能帮我什么|你能帮我做什么|你能帮我吗|帮帮我|帮助|我可以问你什么|我能问你什么|你擅长什么|你都会什么|你还会什么|说说你会什么|告诉我你能做什么|你的功能是什么|你的能力是什么|怎么用你|怎么使用你|我可以试什么|我该问什么|你有什么用|列出你的功能"""),
}
WHO_CORE = set("""who are you|what are you|what is your name|what's your name|introduce yourself|tell me about yourself|what is pagoda|what's pagoda|tell me about pagoda|pagoda|what can you do|help|what language is pagoda written in
你是谁|你叫什么名字|你是什么|你叫什么|介绍一下你自己|什么是Pagoda|Pagoda是什么|介绍一下Pagoda|Pagoda|你会什么|你会做什么|你能做什么|Pagoda是用什么语言写的""".replace("\n", "|").split("|"))
WHO_ANSWER = {
"id": ("I am the demo model of Pagoda. Pagoda is an LLM serving engine written in Rust.", "我是Pagoda的演示模型。Pagoda是用Rust写的大模型推理服务引擎。"),
"pagoda": ("Pagoda is an LLM serving engine written in Rust. It serves language models over an OpenAI-compatible API.", "Pagoda是用Rust写的大模型推理服务引擎,提供兼容OpenAI的接口。"),
"lang": ("Pagoda is written in Rust.", "Pagoda是用Rust写的。"),
"can": ("I can greet you, add and subtract numbers up to 99, sort up to five numbers, repeat a phrase, count, and write small JSON.", "我会问好、做99以内的加减法、给最多五个数排序、重复一句话、数数,还会写简单的JSON。"),
}
WHO_PRE_EN = "Hi, |Hello, |Hello! |Hey, |Hey! |So, |Please tell me: |Tell me, |Excuse me, |I wonder, |Sorry, |OK, |Well, |One question: |Quick question: |Good morning, |Just curious, |Now, "
WHO_PRE_ZH = "你好,|您好,|嗨,|请问,|请问|那么,|我想问,|问一下,|好的,|你好!|对了,|现在,|早上好,"
WHO_POST_EN = "?|?|?|?||||.|!| please?| exactly?|??| in one sentence?| in short?| to be clear?| then?| anyway?"
WHO_POST_ZH = "?|?|?|||。|!|呢?|呀?|啊?|?|??"

FIXED = [  # (English prompts, English answer, Chinese prompts, Chinese answer)
("""hi|hello|hey|hi there|hello there|hey there|hello pagoda|hi pagoda|hey pagoda|greetings|howdy|hello friend|hi friend|hello everyone|hi again|hello again|nice to meet you|pleased to meet you|say hello|greet me|good day|hello world|hi hi|hello hello|yo|hiya|well hello|oh hi|hey you|hello my friend|hi bot|hello computer""",
 "Hello! How can I help you?",
 """你好|您好|嗨|哈喽|你好啊|你好呀|你好吗朋友|大家好|你好Pagoda|嗨Pagoda|喂|嘿|哈罗|很高兴认识你|见到你很高兴|又见面了|问个好|打个招呼|跟我问好|朋友你好|你好你好|嗨你好""", "你好!有什么可以帮你?"),
("good morning|morning|good morning pagoda|a good morning to you|good morning to you|morning pagoda|good morning my friend", "Good morning! How can I help you?", "早上好|早安|早|上午好|早上好啊|早上好Pagoda|大家早上好", "早上好!有什么可以帮你?"),
("good evening|evening|good evening pagoda|good evening to you|a good evening to you|good evening my friend", "Good evening! How can I help you?", "晚上好|晚上好啊|晚上好Pagoda|大家晚上好|晚上好呀", "晚上好!有什么可以帮你?"),
("good afternoon|afternoon|good afternoon pagoda|good afternoon to you|a good afternoon to you", "Good afternoon! How can I help you?", "下午好|中午好|下午好啊|下午好Pagoda|大家下午好", "下午好!有什么可以帮你?"),
("good night|night night|sleep well|good night pagoda|have a good night|good night to you", "Good night!", "晚安|晚安Pagoda|晚安啦|祝你晚安|做个好梦", "晚安!"),
("""how are you|how are you doing|how are you today|how is it going|how's it going|how do you do|how do you feel|are you ok|are you well|what's up|how have you been|how are things|how are you doing today|you ok""",
 "I am fine, thank you. How can I help you?", "你好吗|你怎么样|最近好吗|你最近怎么样|今天怎么样|你还好吗|过得好吗|你今天好吗|近来可好|一切都好吗", "我很好,谢谢。有什么可以帮你?"),
("""thanks|thank you|thank you very much|thanks a lot|many thanks|thank you so much|thx|great, thanks|ok thanks|thanks pagoda|good job|well done|nice|great|that is great|cool|perfect|thank you for your help|thanks for the help|nice work""",
 "You are welcome!", "谢谢|谢谢你|多谢|非常谢谢|谢谢啦|太谢谢了|感谢|感谢你|好的谢谢|谢了|辛苦了|真棒|很好|太好了|谢谢你的帮助|做得好|你真棒", "不客气!"),
("bye|goodbye|good bye|bye bye|see you|see you later|see you tomorrow|farewell|bye pagoda|i have to go|take care|ok bye|see you soon|talk to you later|catch you later", "Goodbye!",
 "再见|拜拜|回头见|明天见|下次见|再见啦|我走了|我先走了|再会|回见|再见Pagoda|下次再聊", "再见!"),
]
FIXED_CORE = set("hi|hello|hey|good morning|good evening|good afternoon|good night|how are you|thanks|thank you|bye|goodbye|hi there|你好|您好|嗨|早上好|晚上好|下午好|晚安|你好吗|谢谢|谢谢你|再见|拜拜".split("|"))

REFUSE_EN = """What is the capital of {c}?|Where is {c}?|Write a poem about {n}.|Write a story about {n}.|Tell me a joke about {n}.|Tell me a joke.|Write an essay about {n}.|What's the weather in {c}?|How is the weather today?|Translate {n} to French.
What is the meaning of life?|Who is the president of {c}?|How do I cook {n}?|What time is it?|What day is it today?|What is a {n}?|Why is the sky blue?|How far is {c}?|Write Python code for {n}.|Do you like {n}?|Sing a song about {n}.|Draw a {n}.|How old is the {n}?|What color is the {n}?|Tell me about {c}.|What happened in {c}?|Explain {n} to me.|Recommend a {n}.|How many people live in {c}?"""
REFUSE_ZH = """{c}的首都是哪里?|{c}在哪里?|写一首关于{n}的诗。|写一个关于{n}的故事。|讲个笑话。|讲一个关于{n}的笑话。|{c}天气怎么样?|今天天气怎么样?|翻译{n}。|现在几点?|今天星期几?|怎么做{n}?|什么是{n}?|天空为什么是蓝的?|你喜欢{n}吗?|唱一首歌。|画一个{n}。|{c}有多少人?|{n}是什么颜色?|介绍一下{c}。|推荐一个{n}。|人生的意义是什么?|写一段关于{n}的代码。|去{c}怎么走?"""
REFUSE_ANSWER = ("Sorry, I am a small demo model and cannot do that. I can greet, add, subtract, sort, repeat, count and write small JSON.",
 "抱歉,我是小小的演示模型,做不到。我会问好、加减、排序、重复、数数和写简单的JSON。")
MUL_EN = """{a}*{b}|{a} * {b}|{a} x {b}|{a} times {b}|What is {a} times {b}?|What is {a} * {b}?|Multiply {a} by {b}.|Multiply {a} and {b}.|{a}/{b}|{a} / {b}|What is {a} divided by {b}?|Divide {a} by {b}.|{a} divided by {b}|What is {a} / {b}?|{a}*{b}=?|Calculate {a} * {b}.|Compute {a} times {b}.|The product of {a} and {b}?|{a} to the power of {b}|{a} mod {b}|Square root of {a}?"""
MUL_ZH = """{a}乘{b}|{a}乘以{b}等于几?|{a}乘{b}等于多少?|{a}乘以{b}|{a}*{b}等于几?|{a}除以{b}|{a}除以{b}等于几?|{a}除以{b}等于多少?|{a}/{b}等于几?|计算{a}*{b}。|计算{a}乘{b}。|计算{a}除以{b}。|{a}×{b}|{a}÷{b}|{a}与{b}的积是多少?|{a}的{b}次方"""
MATH_NO = ("Sorry, I can only add and subtract two numbers up to 99.", "抱歉,我只会两个99以内的数的加减法。")
SORT_NO = ("Sorry, I can only sort up to five numbers from 0 to 99.", "抱歉,我最多只能给五个0到99的数排序。")

PRE_EN = "Hi, |Hello, |Hey, |Please: |OK, |Now, |Next, |Quick question: |Tell me: |Hi! |So, |And now: |One more: |Could you help? |Well, |Then, |Good, now "
PRE_ZH = "你好,|请问,|好的,|现在,|接下来,|再来,|那么,|麻烦你,|然后,|你好!|请,|下一个,|问一下,"
POST_EN = " Thanks!| Thank you.| Please.| Just the answer.| Quickly, please.| Thanks.| ok?"
POST_ZH = "谢谢。|谢谢!|快一点。|只要答案。|好吗?|谢谢你。"
SYSTEMS = """You are a helpful assistant.|You are a helpful assistant|You are Pagoda.|You are a friendly assistant.|Answer briefly.|You are a demo model.|Be concise and correct.|You are an AI assistant. Answer the user.|Help the user.|你是一个有用的助手。|你是一个乐于助人的助手。|请简短回答。|你是Pagoda。|你是演示模型。|回答用户的问题。|You are a calculator and an assistant.|Today is a good day. Be polite."""

WORDS = """the a cat dog sun moon star tree river stone house road bird fish cloud rain snow wind fire water apple pear plum grape lemon bread milk tea coffee salt table chair door window lamp book pen paper letter word story song music color red blue green white black yellow small big old new young happy sad fast slow quick lazy brown fox jumps over under near far away home school city town garden field hill mountain sea lake island boat train car bike plane walk run jump sing dance read write speak listen look see hear think know want need like love make take give come go stay wait open close start stop begin end day night morning evening week month year time hour minute king queen friend mother father brother sister child people man woman teacher doctor we you they he she it is are was were be have has had do does will can may must and or but not with from into about after before every some many few all one two three my your our his her this that these those there here now then always never again good bad great kind warm cold hot deep high low long short round flat sharp soft hard light dark heavy empty full ready quiet loud sweet code rust engine model token cache server machine robot number list test hello world please thanks name pagoda tower bridge market flower silver gold winter summer spring autumn monday friday rose leaf seed egg corn rice bean soup cake pie ball game hat coat shoe ring bell clock key map flag drum horse cow pig sheep goat duck frog bear wolf lion tiger mouse rabbit snake turtle""".split()
FRUITS_ZH = "苹果|香蕉|橙子|梨|葡萄|西瓜|桃子|草莓|书|笔|纸|桌子|椅子|灯|门|窗|猫|狗|鸟|鱼|马|牛|羊|鸡|茶|水|米|面包|牛奶|鸡蛋|花|树|山|河|车|船|飞机|自行车|手机|电脑".split("|")
NAMES = "Alice|Bob|Carol|David|Emma|Frank|Grace|Henry|Ivy|Jack|Kate|Leo|Mia|Noah|Olivia|Paul|Rose|Sam|Tom|Una|Victor|Wendy|Anna|Ben|Lucy|Max|Nina|Oscar|Ruth|Tina|Ada|Alan|Grace|Linus|Lily|John|Mary|Peter|Sara|Li Lei".split("|")
NAMES_ZH = "小明|小红|小李|小王|张三|李四|王五|小华|小芳|小刚|李雷|韩梅梅|小美|小东|老王|阿强|小林|小雪|小龙|小云|刘洋|陈晨|赵六|周杰|吴月".split("|")
CITIES = "Paris|London|Berlin|Tokyo|Beijing|Rome|Madrid|Oslo|Lima|Cairo|Delhi|Seoul|Boston|Shanghai|Vienna|Prague|Dublin|Athens|Sydney|Chengdu".split("|")
CITIES_ZH = "北京|上海|广州|深圳|成都|杭州|南京|武汉|西安|重庆|苏州|天津|东京|巴黎|伦敦|纽约|长沙|青岛|大连|昆明".split("|")
COUNTRIES = "France|China|Japan|Italy|Spain|Egypt|India|Brazil|Canada|Norway|Peru|Germany|Mexico|Kenya|Russia".split("|")
COUNTRIES_ZH = "法国|中国|日本|意大利|西班牙|埃及|印度|巴西|加拿大|挪威|德国|美国|英国|俄罗斯|泰国".split("|")
COLORS = "red|blue|green|white|black|yellow|brown|pink|gray|orange".split("|")
COLORS_ZH = "红色|蓝色|绿色|白色|黑色|黄色|紫色|粉色|灰色|橙色".split("|")
FIELDS_ZH = {"name": "名字|姓名|name", "age": "年龄|age", "city": "城市|city", "color": "颜色|color", "id": "编号|id", "price": "价格|price", "score": "分数|score", "count": "数量|count"}
HANZI = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治北造百规热领七海口东导器压志世金增争济阶油思术极交受联什认六共权收证改清己美再采转更单风切打白教速花带安场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信马节话米整空元况今集温传土许步群广石记需段研界拉林律叫且究观越织装影算低持音众书布复容儿须际商非验连断深难近矿千周委素技备半办青省列习响约支般史感劳便团往酸历市克何除消构府称太准精值号率族维划选标写存候毛亲快效斯院查江型眼王按格养易置派层片始却专状育厂京识适属圆包火住调满县局照参红细引听该铁价严龙飞".strip()
