[ (true && false) (true || throw "not evaluated") (false && throw "not evaluated") (false -> throw "not evaluated") (true -> false) (!true) (!false && true) ]
