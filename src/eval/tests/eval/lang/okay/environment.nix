with builtins; [ (getEnv "BENTO_NO_SUCH_VARIABLE") langVersion nixVersion storeDir (isString currentSystem) (isInt currentTime) (compareVersions nixVersion "2.18") ]
