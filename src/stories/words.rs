//! The word lists of the stories, in the notation of `compile.rs`.
//!
//! Words are short, ordinary and few, and every list is short enough that each word turns up often. People never
//! share a name with other people or with animals, so a name tells who is meant and which pronoun to use. The entries
//! of a list can stand for each other wherever the list is used: that keeps most choices independent of each other,
//! which is what makes the stories rich and yet quick to learn. Adjectives that may meet are of different lists
//! (`build` and `mood`), so that no one is fat and thin.
//!
//! What a story refers to again can be recognised by its kind: its one `toy` is never a `thing`, and no other list has the
//! words of either. A small model learns to look for the toy long before it learns which of several was meant.

/// All tables, separated by blank lines.
pub(super) const WORDS: &str = "
boy he:he him:him = Tom; Ben; Sam; Max; Leo; Jack; Finn; Noah; Hugo; Tim

girl he:she him:her = Mia; Anna; Lily; Emma; Ella; Nora; Ruby; Zoe; Lucy; Kate

pal = Dan; Adam; Luke; Theo; Jim; Pete; Sara; Jane; Sue; Maya; Cleo; Beth

elder = Mom; Dad; Gran; Grandpa; Aunt Fay; Uncle Bob

pet = Pip; Dot; Bud; Coco; Rex; Puff; Zip; Star

animal =
  cat; dog; hen; pig; cow; fox; owl; bee; ant; goat; frog; duck; lamb; bear; crow; deer; swan; toad; mole; hare; pony;
  mouse; goose; robin; puppy; snail; horse; sheep; rabbit; turtle; calf; crab

patient part:paw go:run =
  puppy; fox; mouse; dog; duck|wing|fly; goose|wing|fly; crow|wing|fly; robin|wing|fly; owl|wing|fly;
  bee|wing|fly; swan|wing|fly; rabbit|leg|hop; frog|leg|hop; toad|leg|hop; hare|leg|hop; lamb|leg|run; pony|leg|run;
  goat|leg|run; calf|leg|run

mood =
  shy; sad; kind; calm; wise; glad; mad; proud; brave; happy; funny; silly; jolly; merry; clever; polite; grumpy; gentle

build =
  fat; thin; tiny; tall; old; young; slow; fast; lazy; busy; sleepy; hungry; wild; tame; noisy; quiet; lively; little

trait = tall; busy; noisy; quiet; lively; young; strong; quick

look =
  big; old; new; wet; odd; dry; tiny; huge; neat; fine; nice; good; dull; cute; worn; plain; dusty; muddy; shiny; clean;
  dirty; small; pretty; funny; grand; ugly; little; heavy; lovely; strange

fine = big; new; neat; fine; nice; good; tiny; huge; cute; small; shiny; pretty; funny; grand; little; lovely

flaw = big; tiny; huge; heavy; small; dull; plain; wet; soft; thin; old; funny

colour = red; blue; green; pink; black; white; brown; gray; gold; tan; purple; yellow

crop = plums; pears; apples; figs; nuts; beans; peas; grapes; limes; dates; melons; cherries

valor = brave; strong; wise; fast; bold; calm; proud; clever

taste = big; small; fresh; sweet; nice; good; fine; warm

night = dark; wet; quiet; warm; dry; still; wild; calm

num = two; three; four; five; six; seven; eight; nine; ten

toy =
  ball; kite; doll; drum; car; sled; bell; book; map; flag; ring; fan; net; top; cup; clock; train; horn; harp; bag

thing =
  box; pen; jar; key; mug; pot; pan; jug; sock; shoe; vase; comb; fork; spoon; brush; plate; chair; lamp; bowl; tray;
  broom; coin; brick; nail; soap; glove; boot; button; candle; towel; jacket; bucket

wear = hat; coat; cap; scarf; shirt; belt; cape; dress; mask; crown; wig; vest; bow; tie

fruit =
  plums; pears; apples; figs; nuts; buns; eggs; beans; peas; rolls; tarts; grapes; limes; dates; cakes; pies; melons;
  cherries

stuff = wood; wool; paper; string; glue; straw; cloth; clay; tape; tin; rope; wire; wax; felt; yarn; hay; moss; grass

place at =
  the park|in the park; the garden|in the garden; the woods|in the woods; the farm|on the farm; the hill|on the hill;
  the field|in the field; the yard|in the yard; the lake|by the lake; the river|by the river; the pond|by the pond;
  the mill|by the mill; the well|by the well; the barn|by the barn; the beach|on the beach; the road|by the road;
  the shed|by the shed

prep = under; behind; by; near; beside

nook = bush; tree; log; rock; cart; bench; boat; tent; stump; hedge; wagon; fence; plank; stone; crate; tub

seat = bed; table; stove; desk; lamp; sofa; crib; shelf; stool; chest; sink; rug

hobby =
  singing; dancing; reading; running; painting; drawing; cooking; fishing; climbing; jumping; digging; sewing; baking;
  swimming; hiding; riding

work = cart; hut; tent; boat; wall; tower; fort; raft

time =
  3*one day; one morning; one evening; on Monday; on Tuesday; on Wednesday; on Thursday; on Friday; on Saturday;
  on Sunday; last week; last spring; last summer; last fall; last winter; after school; after lunch; at noon

day = Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday

good = happy; glad; proud; calm; safe; warm; brave; lucky; merry; jolly; strong; fine

bad = sad; cross; upset; mad; glum; hurt; angry; gloomy; sorry; tired; lonely; sore

manner =
  softly; loudly; gently; quickly; slowly; calmly; bravely; shyly; proudly; kindly; quietly; gladly; sweetly; wisely
";
