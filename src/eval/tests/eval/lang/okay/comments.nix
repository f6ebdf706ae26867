[ 1 /* inline */ 2 # to the end
 3 /** doc */ 4 /**/ 5 ]
