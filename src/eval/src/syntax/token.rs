//! The tokens, under the names that Nix's messages give to them.

macro_rules! tokens {
    ($($name:ident $text:literal)*) => {
        /// A kind of token. In the order in which bison lists what it would have expected.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub(super) enum Token { $($name,)* }

        impl Token {
            /// Its name in messages.
            pub(super) fn describe(self) -> &'static str {
                match self { $(Token::$name => $text,)* }
            }
        }
    };
}

tokens! {
    Eof "end of file"
    Invalid "invalid token"
    Id "identifier"
    Str "string"
    IndStr "indented string"
    Int "integer"
    Float "floating-point literal"
    Path "path"
    HomePath "'~/…' path"
    SearchPath "'<…>' path"
    PathEnd "end of path"
    Uri "URI"
    If "'if'"
    Then "'then'"
    Else "'else'"
    Assert "'assert'"
    With "'with'"
    Let "'let'"
    In "'in'"
    Rec "'rec'"
    Inherit "'inherit'"
    EqEq "'=='"
    NotEq "'!='"
    LessEq "'<='"
    GreaterEq "'>='"
    Update "'//'"
    Concat "'++'"
    AndAnd "'&&'"
    OrOr "'||'"
    Impl "'->'"
    OrKeyword "'or'"
    PipeFrom "'<|'"
    PipeInto "'|>'"
    DollarCurly "'${'"
    IndStringOpen "start of an indented string"
    IndStringClose "end of an indented string"
    Ellipsis "'...'"
    Less "'<'"
    Greater "'>'"
    Plus "'+'"
    Minus "'-'"
    Star "'*'"
    Slash "'/'"
    Question "'?'"
    Colon "':'"
    At "'@'"
    Semicolon "';'"
    Bang "'!'"
    Dot "'.'"
    Quote "'\"'"
    ParenOpen "'('"
    ParenClose "')'"
    BraceOpen "'{'"
    BraceClose "'}'"
    BracketOpen "'['"
    BracketClose "']'"
    Equals "'='"
    Comma "','"
}

/// How a binary operator binds, loosest first; the levels of [`Token::binary`].
pub(super) mod level {
    /// Lets every operator in.
    pub(in super::super) const ANY: u8 = 1;
    /// Above `!`: what an operand of `!` may contain.
    pub(in super::super) const ABOVE_NOT: u8 = 8;
}

/// Which way operators of one level group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Grouping {
    Left,
    Right,
    None,
}

impl Token {
    /// The level and the grouping of a binary operator; level 0 for other tokens. (`!` is level 7.)
    #[inline]
    pub(super) fn binary(self) -> (u8, Grouping) {
        match self {
            Token::Impl => (1, Grouping::Right),
            Token::OrOr => (2, Grouping::Left),
            Token::AndAnd => (3, Grouping::Left),
            Token::EqEq | Token::NotEq => (4, Grouping::None),
            Token::Less | Token::Greater | Token::LessEq | Token::GreaterEq => (5, Grouping::None),
            Token::Update => (6, Grouping::Right),
            Token::Plus | Token::Minus => (8, Grouping::Left),
            Token::Star | Token::Slash => (9, Grouping::Left),
            Token::Concat => (10, Grouping::Right),
            // its right side is no expression, so that `a ? b ? c` is no conflict
            Token::Question => (11, Grouping::Left),
            _ => (0, Grouping::None),
        }
    }

    /// Whether an argument of a call or an element of a list can start with this token.
    #[inline]
    pub(super) fn starts_operand(self) -> bool {
        matches!(
            self,
            Token::Id
                | Token::Int
                | Token::Float
                | Token::Path
                | Token::HomePath
                | Token::SearchPath
                | Token::Uri
                | Token::Let
                | Token::Rec
                | Token::IndStringOpen
                | Token::Quote
                | Token::ParenOpen
                | Token::BraceOpen
                | Token::BracketOpen
        )
    }
}
